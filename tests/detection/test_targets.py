import pytest
import torch

from retinanet_ext.detection import IoUMatcher, label_anchors


def test_labels_and_boxes_of_a_batch():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 4.5], [50.0, 50.0, 60.0, 60.0]])
    gt_boxes = [torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.zeros(0, 4), torch.tensor([[50.0, 50.0, 60.0, 59.0]])]
    gt_classes = [torch.tensor([2]), torch.zeros(0, dtype=torch.int64), torch.tensor([0])]
    targets = label_anchors([anchors], gt_boxes, gt_classes, IoUMatcher(low_quality="never"), num_classes=3)
    # Anchor 1 has IoU 0.45 with the first image's box: ignored. The second image is all background, 3.
    assert targets.labels.tolist() == [[2, -1, 3], [3, 3, 3], [3, 3, 0]]
    assert targets.image_index.tolist() == [0, 2]
    assert targets.anchor_index.tolist() == [0, 2]
    assert targets.gt_boxes.tolist() == [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 59.0]]
    assert targets.num_foreground.tolist() == [1, 0, 1]


def random_batch(counts, generator):
    corner = torch.rand(sum(counts) + 60, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 5 + torch.rand(len(corner), 2, generator=generator) * 30], dim=1)
    anchors, *images = boxes.split([60, *counts])
    return anchors, images, [torch.randint(0, 4, (count,), generator=generator) for count in counts]


@pytest.mark.parametrize("counts", [[4, 0, 9, 1], [0, 0], [3]])
@pytest.mark.parametrize("batched", [True, False])
def test_targets_are_those_of_a_loop_over_images(counts, batched, generator, device):
    anchors, gt_boxes, gt_classes = random_batch(counts, generator)
    matcher = IoUMatcher()
    on_device = [[x.to(device) for x in part] for part in (gt_boxes, gt_classes)]
    one_at_a_time = lambda *args: matcher(*args)  # noqa: E731  a plain matcher, without match_batch
    targets = label_anchors([anchors.to(device)], *on_device, matcher if batched else one_at_a_time, num_classes=4)
    rows = iter(zip(targets.image_index.tolist(), targets.anchor_index.tolist(), targets.gt_boxes.cpu()))
    assert targets.labels.dtype == torch.int64 and targets.labels.shape == (len(counts), 60)
    for image, (boxes, classes) in enumerate(zip(gt_boxes, gt_classes)):
        matched, state = matcher(anchors, boxes)
        for anchor in range(60):
            label = targets.labels[image, anchor].item()
            if state[anchor] == 1:
                assert label == classes[matched[anchor]]
                image_index, anchor_index, box = next(rows)  # by image, then by anchor
                assert (image_index, anchor_index) == (image, anchor) and torch.equal(box, boxes[matched[anchor]])
            else:
                assert label == (4 if state[anchor] == 0 else -1)
    assert next(rows, None) is None


def test_a_matcher_that_points_at_no_box_is_refused(generator):
    anchors, gt_boxes, gt_classes = random_batch([5, 2], generator)

    def third_box(anchors, boxes):
        return torch.full((len(anchors),), 2), torch.ones(len(anchors), dtype=torch.int8)

    with pytest.raises(ValueError, match="of image 1 of the batch the ground truth box 2; the image has 2 boxes"):
        label_anchors([anchors], gt_boxes, gt_classes, third_box, num_classes=4)
