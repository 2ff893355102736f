"""Matching of anchors to boxes: this package, Detectron2, torchvision, and the plain form over the whole matrix.

python -m benchmarks.matching                    # 2,000 boxes in an image of 800x1333; 16 images of 8 boxes
python -m benchmarks.matching --boxes 8 --images 2 --height 480 --width 640
"""

import argparse
from collections.abc import Callable, Iterator, Sequence

import torch
import torchvision
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from benchmarks.measure import Case, format_cases, has_detectron2, make_parser, print_header, time_in_turns, write_cases
from retinanet_ext.detection import IoUMatcher
from retinanet_ext.detection.matcher import FOREGROUND, IGNORE
from retinanet_ext.ops import pairwise_iou

STRIDES = (8, 16, 32, 64, 128)
PAD_TO = 32
Match = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def make_anchors(height: int, width: int) -> torch.Tensor:
    """RetinaNet's anchors ``(R, 4)``, XYXY: 3 sizes in 3 shapes at each position of each level of the padded image."""
    height, width = (-(-length // PAD_TO) * PAD_TO for length in (height, width))
    levels = []
    for stride in STRIDES:
        y, x = (torch.arange(-(-length // stride)) * float(stride) for length in (height, width))
        y, x = torch.meshgrid(y, x, indexing="ij")
        sizes = [(4 * stride * 2 ** (octave / 3), ratio**0.5) for octave in range(3) for ratio in (0.5, 1.0, 2.0)]
        cell = torch.tensor([[-size / root, -size * root, size / root, size * root] for size, root in sizes]) / 2
        levels.append((torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4) + cell).reshape(-1, 4))
    return torch.cat(levels)


def make_boxes(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Boxes ``(count, 4)``, XYXY, inside the image; log-uniform sides from 16 pixels to half the shorter image side.

    Each box overlaps an anchor. For boxes that do not, Detectron2 and this package differ on purpose.
    """
    largest = min(height, width) / 2
    size = 16 * (largest / 16) ** torch.rand(count, 1, generator=generator)
    size = size * 2 ** (torch.rand(count, 2, generator=generator) - 0.5)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([float(width), float(height)]) - size)
    return torch.cat([corner, corner + size], dim=1)


def matchers() -> dict[str, Match]:
    """Row -> function of the anchors ``(R, 4)`` and boxes ``(G, 4)`` of an image; the last row is the reference."""
    found = {"this package": IoUMatcher(), "plain form": plain_form, "torchvision": torchvision_matching()}
    if has_detectron2():
        found["Detectron2"] = detectron2_matching()
    return found


def plain_form(anchors: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, over the whole ``(G, R)`` matrix. Returns box indices ``(R,)`` and states ``(R,)``."""
    iou = pairwise_iou(boxes, anchors)
    best, matched = iou.max(dim=0)
    best_of_box = iou.amax(dim=1, keepdim=True)
    state = (best >= 0.5).to(torch.int8)
    state[(best >= 0.4) & (best < 0.5)] = IGNORE
    state[((iou == best_of_box) & (best_of_box > 0)).any(dim=0)] = FOREGROUND
    return matched, state


def torchvision_matching() -> Match:
    matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)

    def match(anchors, boxes):
        found = matcher(torchvision.ops.box_iou(boxes, anchors))
        # It returns the index of the box, -1 for background, or -2 between the thresholds.
        state = (found >= 0).to(torch.int8)
        return found, state.masked_fill_(found == matcher.BETWEEN_THRESHOLDS, IGNORE)

    return match


def detectron2_matching() -> Match:
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes
    from detectron2.structures import pairwise_iou as detectron2_iou

    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    return lambda anchors, boxes: matcher(detectron2_iou(Boxes(boxes), Boxes(anchors)))


def one_by_one(match: Match, anchors: torch.Tensor, images: Sequence[torch.Tensor]):
    """Box indices and states, ``(N, R)`` each, by a loop over the images."""
    matched, state = zip(*(match(anchors, boxes) for boxes in images))
    return torch.stack(matched), torch.stack(state)


def batched(anchors: torch.Tensor, images: Sequence[torch.Tensor]):
    """The same for all images at once; they must have the same number of boxes."""
    return IoUMatcher().match_batch(anchors, torch.stack(list(images)), [len(boxes) for boxes in images])


def make_cases(anchors: torch.Tensor, images: Sequence[torch.Tensor]) -> list[Case]:
    cases = [Case("this package, batched", lambda: batched(anchors, images))] if len(images) > 1 else []
    for name, match in matchers().items():
        name += ", image by image" if len(images) > 1 else ""
        cases.append(Case(name, lambda match=match: one_by_one(match, anchors, images)))
    return cases


def check(cases: Sequence[Case]) -> None:
    """Compare the states of all anchors and the boxes of foreground anchors, and fill in ``difference``.

    Raises:
        RuntimeError: an anchor has another state or box than in the last case.
    """
    matched, state = cases[-1].run()
    foreground = state == FOREGROUND
    for case in cases:
        case_matched, case_state = case.run()
        wrong_states = int((case_state != state).sum())
        wrong_boxes = int((case_matched != matched)[foreground & (case_state == FOREGROUND)].sum())
        if wrong_states or wrong_boxes:
            raise RuntimeError(
                f"{case.name} gives {wrong_states} anchors another state and {wrong_boxes} foreground anchors another "
                f"box than {cases[-1].name}; nothing was timed"
            )
        case.difference = 0.0


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("matching of anchors to boxes", repeats=5)
    parser.add_argument("--boxes", type=int, default=2000, help="boxes per image, first table")
    parser.add_argument("--images", type=int, default=1, help="images, first table")
    parser.add_argument("--small-boxes", type=int, default=8, help="boxes per image, second table")
    parser.add_argument("--small-images", type=int, default=16, help="images, second table")
    parser.add_argument("--height", type=int, default=800, help="height of each image, pixels")
    parser.add_argument("--width", type=int, default=1333, help="width of each image, pixels")
    return parser.parse_args(words)


def measure(settings: argparse.Namespace) -> Iterator[tuple[str, list[Case]]]:
    """Yield title and cases of each table, checked and timed."""
    torch.set_num_threads(settings.threads)
    anchors = make_anchors(settings.height, settings.width).to(settings.device)
    generator = torch.Generator().manual_seed(0)
    for count, boxes in [(settings.images, settings.boxes), (settings.small_images, settings.small_boxes)]:
        images = [make_boxes(boxes, settings.height, settings.width, generator) for _ in range(count)]
        cases = make_cases(anchors, [image.to(settings.device) for image in images])
        check(cases)
        time_in_turns(cases, settings.repeats, settings.device)
        yield f"{count} x {boxes} boxes, {len(anchors)} anchors", cases


def main() -> None:
    settings, tables = parse_arguments(), {}
    header = print_header(settings, **({} if has_detectron2() else {"detectron2": "not installed, has no rows"}))
    for title, cases in measure(settings):
        tables[title] = cases
        print(format_cases(cases, cases[-1], title), end="\n\n", flush=True)
    write_cases(settings.json, header, tables)


if __name__ == "__main__":
    main()
