"""Pictures: places and colours of box lines and labels."""

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.lite.data.catalog import Metadata
from retinanet_ext.lite.palette import generate_palette
from retinanet_ext.lite.structures import Boxes, BoxMode, Instances
from retinanet_ext.lite.visualizer import ColorMode, Visualizer

GREY = 120
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def _image(height=200, width=300):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def _changed(picture, original=GREY):
    """Rows and columns (first, last) of the pixels that differ from the image."""
    rows, columns = np.nonzero((picture != original).any(axis=2))
    return rows.min(), rows.max(), columns.min(), columns.max()


def test_line_lies_on_the_inner_edge_of_the_box():
    """Box 50..150 covers the columns 50 to 149. A one-pixel shadow lies outside the box."""
    picture = Visualizer(_image()).overlay_instances(boxes=[[50, 40, 150, 90]], assigned_colors=[RED]).get_image()
    assert picture.shape == (200, 300, 3) and picture.dtype == np.uint8
    red = (picture == (255, 0, 0)).all(axis=2)
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 89, 50, 149)
    assert _changed(picture) == (39, 90, 49, 150)
    assert (picture[45:85, 55:145] == GREY).all()


def test_input_is_not_changed_and_calls_add_up():
    image = _image()
    visualizer = Visualizer(image)
    visualizer.overlay_instances(boxes=[[10, 10, 60, 60]], assigned_colors=[RED])
    visualizer.overlay_instances(boxes=torch.tensor([[100, 10, 160, 60]]), assigned_colors=["b"])
    picture = visualizer.get_output().get_image()
    assert (picture[10, 30] == (255, 0, 0)).all() and (picture[10, 130] == (0, 0, 255)).all()
    assert (image == GREY).all()


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.3, 2.0])
def test_scale(scale):
    picture = Visualizer(_image(101, 203), scale=scale).overlay_instances(
        boxes=[[20, 40, 100, 80]], assigned_colors=[RED]
    )
    picture = picture.get_image()
    assert picture.shape == (int(101 * scale), int(203 * scale), 3)
    rows, columns = np.nonzero((picture == (255, 0, 0)).all(axis=2))
    found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert np.abs(found - scale * np.array([20, 40, 100, 80])).max() <= 1


def test_lines_and_labels_grow_with_the_picture():
    heights = []
    for side in (300, 1200):
        boxes = [[side / 3, side / 3, side / 2, side / 2]]
        plain, labelled = (
            Visualizer(_image(side, side)).overlay_instances(boxes=boxes, labels=[label], assigned_colors=[RED])
            for label in ("", "label")
        )
        column = plain.get_image()[:, int(side * 0.4), 0]
        lines = (column == 255).sum()
        heights.append((lines / 2, _changed(plain.get_image())[0] - _changed(labelled.get_image())[0]))
    assert heights[0][0] == 2 and heights[1][0] == 5
    assert heights[1][1] > 2 * heights[0][1] > 20


@pytest.mark.parametrize(
    "box", [[0, 0, 300, 200], [0, 0, 5, 5], [295, 0, 300, 9], [290, 195, 300, 200], [0, 190, 8, 200]]
)
def test_label_is_whole_also_at_the_border(box):
    def changed_by_label(box):
        plain, labelled = (
            Visualizer(_image()).overlay_instances(boxes=[box], labels=[label], assigned_colors=["yellow"])
            for label in ("", "a label")
        )
        return (plain.get_image() != labelled.get_image()).any(axis=2).sum()

    # At the border, a label changes fewer pixels only because it covers part of its own box's line.
    assert changed_by_label(box) > 0.75 * changed_by_label([140, 100, 160, 110])


def test_label_longer_than_the_image_is_shortened():
    visualizer = Visualizer(_image(60, 80))
    picture = visualizer.overlay_instances(boxes=[[10, 30, 50, 50]], labels=["x" * 200], assigned_colors=[RED])
    assert picture.get_image().shape == (60, 80, 3)
    tiny = Visualizer(_image(3, 3)).overlay_instances(boxes=[[0, 0, 3, 3]], labels=["name"], assigned_colors=[RED])
    assert tiny.get_image().shape == (3, 3, 3)


def test_labels_avoid_each_other():
    """Of two objects at the same place, the second is drawn over the first; the label of the first stays visible."""

    def red_pixels(labels):
        picture = Visualizer(_image()).overlay_instances(
            boxes=[[100, 80, 200, 160]] * len(labels),
            labels=labels,
            assigned_colors=[RED, BLUE][: len(labels)],
        )
        return (picture.get_image()[..., 0] > 200).sum()

    label = red_pixels(["label"]) - red_pixels([""])
    assert label > 300
    # The blue line hides the red line. The blue label's bright text counts as red too.
    assert red_pixels(["label", "label"]) > 0.95 * label


def test_text_is_dark_on_light_and_light_on_dark():
    for color, text in (("yellow", 0), ("navy", 255)):
        picture = Visualizer(_image()).overlay_instances(
            boxes=[[100, 100, 200, 150]], labels=["MMMM"], assigned_colors=[color]
        )
        label = picture.get_image()[80:98, 100:140].reshape(-1, 3).astype(int)
        assert (np.abs(label - text).max(axis=1) < 40).any(), color


def test_predictions_use_names_scores_and_class_colors(monkeypatch):
    seen = {}
    monkeypatch.setattr(Visualizer, "overlay_instances", lambda self, **kwargs: seen.update(kwargs))
    metadata = Metadata("x").set(thing_classes=["cat", "dog"], thing_colors=[(255, 0, 0), (0, 51, 255)])
    predictions = Instances(
        (200, 300),
        pred_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]] * 3)),
        scores=torch.tensor([0.874, 0.5, 1.0]),
        pred_classes=torch.tensor([1, 0, 7]),
    )
    Visualizer(_image(), metadata).draw_instance_predictions(predictions)
    assert seen["labels"] == ["dog 87%", "cat 50%", "7 100%"]
    assert seen["assigned_colors"][:2] == [(0.0, 0.2, 1.0), (1.0, 0.0, 0.0)]
    # Without metadata the class number is the name, and the palette gives the colour.
    Visualizer(_image()).draw_instance_predictions(predictions)
    assert seen["labels"] == ["1 87%", "0 50%", "7 100%"]
    assert seen["assigned_colors"][0] == tuple(value / 255 for value in generate_palette(2)[1])


def test_predictions_may_lack_fields_or_be_empty():
    only_boxes = Instances((200, 300), pred_boxes=Boxes(torch.tensor([[10.0, 10, 50, 50]])))
    assert (Visualizer(_image()).draw_instance_predictions(only_boxes).get_image() != GREY).any()
    empty = Instances(
        (200, 300),
        pred_boxes=Boxes(torch.zeros(0, 4)),
        scores=torch.zeros(0),
        pred_classes=torch.zeros(0).long(),
    )
    assert (Visualizer(_image()).draw_instance_predictions(empty).get_image() == GREY).all()


def test_dataset_dict(monkeypatch):
    record = {
        "annotations": [
            {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
            {"bbox": [10, 20, 30, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 1},
        ]
    }
    seen = {}
    overlay = Visualizer.overlay_instances
    monkeypatch.setattr(
        Visualizer, "overlay_instances", lambda self, **kwargs: seen.update(kwargs) or overlay(self, **kwargs)
    )
    metadata = Metadata("x").set(thing_classes=["cat", "dog"])
    Visualizer(_image(), metadata).draw_dataset_dict(record)
    assert seen["labels"] == ["cat", "dog (crowd)"]
    assert np.array_equal(seen["boxes"], [[10, 20, 40, 60], [10, 20, 30, 40]])
    assert (Visualizer(_image()).draw_dataset_dict({}).get_image() == GREY).all()


def test_boxes_that_cannot_be_drawn_are_left_out():
    boxes = [[float("nan"), 0, 10, 10], [0, 0, float("inf"), 10], [-9, 0, -1, 10], [301, 0, 309, 10]]
    boxes.append([20, 20, 60, 60])
    picture = Visualizer(_image()).overlay_instances(boxes=boxes, assigned_colors=[RED] * 5).get_image()
    assert _changed(picture) == (19, 60, 19, 60)


def test_grey_outside_of_the_boxes():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    image[..., 0] = 200
    picture = Visualizer(image, instance_mode=ColorMode.IMAGE_BW).overlay_instances(
        boxes=[[20, 20, 60, 60]], assigned_colors=[BLUE]
    )
    picture = picture.get_image()
    assert (picture[40, 40] == (200, 0, 0)).all()
    assert len(set(picture[80, 80].tolist())) == 1


def test_save(tmp_path):
    output = Visualizer(_image()).get_output()
    output.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), _image())
    with pytest.raises(ValueError, match="extension"):
        output.save(tmp_path / "a.picture")


def test_one_box_is_blended():
    visualizer = Visualizer(_image(), scale=2.0)
    picture = visualizer.draw_box((50, 40, 150, 90), alpha=0.5, edge_color=RED).get_image()
    blended = picture[80, 100:300]  # on the upper line: half red, half grey
    assert np.abs(blended.astype(int) - [(255 + GREY) / 2, GREY / 2, GREY / 2]).max() <= 1
    assert _changed(picture) == (79, 180, 99, 300) and (picture[90:170, 110:290] == GREY).all()
    opaque = visualizer.draw_box(torch.tensor([50, 40, 150, 90]), alpha=1, edge_color="b").get_image()
    assert (opaque[80, 100:300] == (0, 0, 255)).all()
    assert np.array_equal(visualizer.output.get_image(), opaque)
    visualizer.draw_box((500, 400, 550, 490))  # outside of the image
    assert np.array_equal(visualizer.output.get_image(), opaque)


@pytest.mark.parametrize("alignment, shift", [("left", 0), ("center", 0.5), ("right", 1)])
def test_text_hangs_at_its_position(alignment, shift):
    picture = Visualizer(_image()).draw_text("word", (150, 60), color=RED, horizontal_alignment=alignment).get_image()
    top, bottom, left, right = _changed(picture)
    width = right + 1 - left
    assert top == 60 and 10 < bottom - top < 25 and abs(left - (150 - shift * width)) <= 0.5
    assert (picture == (255, 0, 0)).all(axis=2).any()
    assert (picture[top, left] < GREY).all()  # a dark background
    black = Visualizer(_image()).draw_text("word", (150, 60), color="k").get_image()
    assert (black[60, 150] > GREY).all()


def test_text_grows_and_turns():
    def size(picture):
        top, bottom, left, right = _changed(picture.get_image())
        return bottom + 1 - top, right + 1 - left

    height, width = size(Visualizer(_image()).draw_text("word", (150, 60), font_size=20))
    twice = size(Visualizer(_image()).draw_text("word", (150, 60), font_size=40))
    assert np.abs(np.array(twice) / (height, width) - 2).max() < 0.15
    turned = size(Visualizer(_image()).draw_text("word", (150, 60), font_size=20, rotation=90))
    assert turned == (width, height)
    labels = [Visualizer(_image(), font_size_scale=scale).draw_text("word", (150, 60)) for scale in (1, 3)]
    assert np.abs(np.array(size(labels[1])) / size(labels[0]) - 3).max() < 0.35
    boxes = {"boxes": [[50, 90, 250, 190]], "labels": ["word"], "assigned_colors": [RED]}
    tops = [
        _changed(Visualizer(_image(), font_size_scale=scale).overlay_instances(**boxes).get_image())[0]
        for scale in (1, 3)
    ]
    assert 2 < (90 - tops[1]) / (90 - tops[0]) < 4  # the label stands above the box


def test_errors():
    for shape in ((10, 10), (10, 10, 4), (3, 10, 10), (0, 10, 3)):
        with pytest.raises(ValueError, match=r"\(height, width, 3\)"):
            Visualizer(np.zeros(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="leaves no pixel"):
        Visualizer(_image(), scale=0.001)
    with pytest.raises(ValueError, match="found 1 boxes and 2 labels"):
        Visualizer(_image()).overlay_instances(boxes=[[0, 0, 1, 1]], labels=["a", "b"])


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda v: v.draw_box((1, 2, 3, 4), line_style="--"), "'--'.*'-'"),
        (lambda v: v.draw_text("x", (1, 2), horizontal_alignment="middle"), "'middle'; legal values: left"),
        (lambda v: v.overlay_instances(masks=[[[1, 2, 3, 4]]]), "4 numbers.*three points"),
    ],
)
def test_what_is_not_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw(Visualizer(_image(), instance_mode=ColorMode.SEGMENTATION))


def test_palette_is_stable_vivid_and_well_separated():
    colors = generate_palette(80)
    assert generate_palette(7) == colors[:7] and len(set(colors)) == 80
    saturations = [colorsys.rgb_to_hsv(*(value / 255 for value in color))[1] for color in colors]
    assert min(saturations) > 0.25
    first = np.array(colors[:20], dtype=float)
    distances = np.linalg.norm(first[:, None] - first[None], axis=2)[np.triu_indices(20, k=1)]
    assert distances.min() > 50
    assert len(generate_palette(3000)) == 3000
