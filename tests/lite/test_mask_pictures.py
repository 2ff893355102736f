"""Pictures of masks and skeletons: which pixels change, and to what."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from retinanet_ext.lite.data.catalog import Metadata
from retinanet_ext.lite.structures import Boxes, BoxMode, Instances
from retinanet_ext.lite.visualizer import ColorMode, Visualizer
from retinanet_ext.ops.encoded_masks import EncodedMasks

GREY = 120
RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
# Alpha 0.5 of red on grey: (255 + 120) / 2 = 187.5 (rounded to even), 60, 60.
RED_ON_GREY = (188, 60, 60)


def _image(height=60, width=80):
    return np.full((height, width, 3), GREY, dtype=np.uint8)


def _rectangle_mask(top=10, left=20, bottom=40, right=50):
    mask = np.zeros((60, 80), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _polygon(top=10, left=20, bottom=40, right=50):
    return [left, top, right, top, right, bottom, left, bottom]


def _rle(mask):
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


def _uncompressed(mask):
    changes = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.reshape(-1).astype(int), [2]])))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], changes])).tolist()}


class _Polygons:
    def __init__(self, polygons):
        self.polygons = polygons


class _Bits:
    def __init__(self, tensor):
        self.tensor = tensor


FORMS = {
    "array": lambda mask: mask[None],
    "tensor": lambda mask: torch.from_numpy(mask)[None],
    "list of arrays": lambda mask: [mask],
    "rle": lambda mask: [_rle(mask)],
    "uncompressed rle": lambda mask: [_uncompressed(mask)],
    "encoded": lambda mask: EncodedMasks([_rle(mask)], mask.shape),
    "bit masks": lambda mask: _Bits(torch.from_numpy(mask)[None]),
    "polygon masks": lambda mask: _Polygons([[np.array(_polygon())]]),
    "polygons": lambda mask: [[_polygon()]],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_of_any_form_is_blended_inside_and_changes_nothing_outside(form):
    mask = _rectangle_mask()
    picture = Visualizer(_image()).overlay_instances(masks=FORMS[form](mask), assigned_colors=[RED]).get_image()
    assert (picture[13:37, 23:47] == RED_ON_GREY).all()
    outside = ~_rectangle_mask(8, 18, 42, 52)
    assert (picture[outside] == GREY).all()
    # The outline is stronger than the inside.
    assert picture[10, 35, 0] > 200 and picture[39, 35, 0] > 200 and picture[25, 20, 0] > 200


@pytest.mark.parametrize("form", ["array", "polygons"])
@pytest.mark.parametrize("scale", [0.5, 1.7, 3.0])
def test_masks_follow_the_scale(form, scale):
    visualizer = Visualizer(_image(), scale=scale)
    picture = visualizer.overlay_instances(masks=FORMS[form](_rectangle_mask()), assigned_colors=[RED]).get_image()
    rows, columns = np.nonzero((picture != GREY).any(axis=2))
    found = np.array([rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
    assert np.abs(found - scale * np.array([10, 20, 40, 50])).max() <= 2
    middle = tuple((scale * np.array([25, 35])).astype(int))
    assert tuple(picture[middle]) == RED_ON_GREY


def test_holes_stay_and_overlapping_polygons_make_no_hole():
    mask = _rectangle_mask()
    mask[20:30, 30:40] = False
    picture = Visualizer(_image()).overlay_instances(masks=mask[None], assigned_colors=[RED]).get_image()
    assert (picture[23:27, 33:37] == GREY).all() and tuple(picture[15, 25]) == RED_ON_GREY
    two = [[_polygon(), _polygon(15, 30, 45, 60)]]
    picture = Visualizer(_image()).overlay_instances(masks=two, assigned_colors=[RED]).get_image()
    assert tuple(picture[25, 45]) == RED_ON_GREY


def test_alpha_one_hides_and_alpha_zero_shows_the_image():
    image = np.random.RandomState(0).randint(0, 256, (60, 80, 3)).astype(np.uint8)
    for alpha in (0.0, 0.3, 1.0):
        picture = Visualizer(image).overlay_instances(
            masks=_rectangle_mask()[None], assigned_colors=[BLUE], alpha=alpha
        )
        expected = (1 - alpha) * image[13:37, 23:47] + alpha * np.array([0, 0, 255])
        assert np.abs(picture.get_image()[13:37, 23:47] - expected).max() <= 0.5


def test_masks_of_any_place_and_empty_ones():
    edge = np.zeros((60, 80), dtype=bool)
    edge[50:, 70:] = True
    picture = Visualizer(_image()).overlay_instances(
        masks=[edge, np.zeros_like(edge), None, [_polygon(-30, -30, 20, 20)], [_polygon(70, 90, 80, 99)]],
        assigned_colors=[RED] * 5,
    )
    picture = picture.get_image()
    assert tuple(picture[57, 77]) == RED_ON_GREY and tuple(picture[5, 5]) == RED_ON_GREY
    assert (picture[30:45] == GREY).all()


def test_predictions_with_masks_have_one_color_each_or_that_of_their_class():
    masks = np.stack([_rectangle_mask(5, 5, 30, 30), _rectangle_mask(30, 40, 55, 70)])
    predictions = Instances(
        (60, 80),
        pred_boxes=Boxes(torch.tensor([[5.0, 5, 30, 30], [40, 30, 70, 55]])),
        pred_classes=torch.tensor([1, 1]),
        pred_masks=torch.from_numpy(masks),
    )

    def colors(mode, **metadata):
        visualizer = Visualizer(_image(), Metadata("x").set(**metadata), instance_mode=mode)
        picture = visualizer.draw_instance_predictions(predictions).get_image()
        return tuple(picture[26, 26]), tuple(picture[51, 66])

    first, second = colors(ColorMode.IMAGE)
    assert len({first, second, (GREY,) * 3}) == 3
    first, second = colors(ColorMode.SEGMENTATION, thing_colors=[(0, 0, 0), (0, 0, 255)])
    assert first == second == (24, 24, 228)  # alpha 0.8: 0.2 * 120, and 24 + 0.8 * 255
    predictions.pred_masks = EncodedMasks([_rle(mask) for mask in masks], (60, 80))
    assert colors(ColorMode.SEGMENTATION, thing_colors=[(0, 0, 0), (0, 0, 255)])[0] == (24, 24, 228)


def test_grey_outside_of_the_masks():
    image = np.zeros((60, 80, 3), dtype=np.uint8)
    image[..., 0] = 200
    picture = Visualizer(image, instance_mode=ColorMode.IMAGE_BW).overlay_instances(
        boxes=[[10, 5, 60, 50]], masks=_rectangle_mask()[None], assigned_colors=[BLUE], alpha=0.5
    )
    picture = picture.get_image()
    assert tuple(picture[25, 35]) == (100, 0, 128)
    assert len(set(picture[45, 35].tolist())) == 1  # in the box, outside of the mask


def test_binary_mask_drops_small_parts_and_writes_a_text():
    mask = _rectangle_mask()
    mask[2:5, 2:5] = True  # 9 pixels
    picture = Visualizer(_image()).draw_binary_mask(mask, RED).get_image()
    assert (picture[:7, :7] == GREY).all() and tuple(picture[25, 35]) == RED_ON_GREY
    picture = Visualizer(_image()).draw_binary_mask(mask, RED, area_threshold=9, edge_color="b").get_image()
    assert (picture[2:5, 2:5] != GREY).all() and picture[25, 20, 2] > 190
    written = Visualizer(_image()).draw_binary_mask(mask, RED, text="a").get_image()
    assert (written[25:35, 30:40] != RED_ON_GREY).any()
    assert mask[3, 3]  # the caller's mask is unchanged


def test_polygon():
    picture = Visualizer(_image()).draw_polygon(np.reshape(_polygon(), (-1, 2)), RED, edge_color="b").get_image()
    assert tuple(picture[25, 35]) == RED_ON_GREY and picture[25, 20, 2] > 190


POINTS = {
    "nose": (40, 8), "left_shoulder": (50, 20), "right_shoulder": (30, 20), "left_hip": (46, 50), "right_hip": (34, 50)
}  # fmt: skip


def _person(**hidden):
    return np.array([[*xy, hidden.get(name, 2)] for name, xy in POINTS.items()], dtype=float)


def _person_metadata():
    rules = [("left_shoulder", "left_hip", (0, 255, 0)), ("right_shoulder", "right_hip", (0, 0, 255))]
    return Metadata("x").set(keypoint_names=list(POINTS), keypoint_connection_rules=rules)


def test_skeleton_lines_join_visible_points():
    def picture(metadata, keypoints):
        return Visualizer(_image(), metadata).draw_and_connect_keypoints(keypoints).get_image().astype(int)

    whole = picture(_person_metadata(), _person())
    assert np.abs(whole[35, 48] - (0, 255, 0)).max() < 60 and np.abs(whole[35, 32] - (0, 0, 255)).max() < 60
    assert np.abs(whole[35, 40] - (255, 0, 0)).max() < 60, "between the middle of the shoulders and that of the hips"
    assert np.abs(whole[14, 40] - (255, 0, 0)).max() < 60, "between the nose and the middle of the shoulders"
    hidden = picture(_person_metadata(), torch.from_numpy(_person(left_hip=0)))
    assert (hidden[35, 48] == GREY).all() and (hidden[35, 40] == GREY).all() and (hidden[35, 32] != GREY).any()
    points = picture(None, _person())
    assert all((points[y, x] != GREY).any() for x, y in POINTS.values()) and (points[35, 32] == GREY).all()


def test_keypoints_that_are_hidden_far_away_or_not_finite():
    keypoints = np.array([[[10, 10, 0.04], [np.nan, 5, 1], [-1e9, 2, 1], [40, 30, 0.06]]])
    picture = Visualizer(_image()).overlay_instances(keypoints=keypoints).get_image()
    rows, columns = np.nonzero((picture != GREY).any(axis=2))
    assert abs(rows.mean() - 29.5) < 0.6 and abs(columns.mean() - 39.5) < 0.6
    assert (Visualizer(_image()).overlay_instances(keypoints=np.zeros((2, 5, 3))).get_image() == GREY).all()


def test_labels_stand_at_objects_without_boxes():
    plain, labelled = (
        Visualizer(_image(200, 300)).overlay_instances(
            masks=[None, [_polygon(100, 50, 150, 120)]], keypoints=[[[200, 50, 2]], [[0, 0, 0]]],
            labels=labels, assigned_colors=[BLUE, RED],
        )
        for labels in (None, ["ab", "ab"])
    )  # fmt: skip
    changed = (plain.get_image() != labelled.get_image()).any(axis=2)
    assert changed[60:100, 50:90].any() and changed[20:80, 190:240].any() and not changed[:, 250:].any()


def test_dataset_dict_with_polygons_rle_and_keypoints():
    record = {
        "annotations": [
            {
                "bbox": [20, 10, 30, 30],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "segmentation": [_polygon()],
                "keypoints": [35, 25, 2],
            },
            {"bbox": [60, 5, 10, 10], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0},
            {"category_id": 0, "segmentation": _rle(_rectangle_mask(45, 60, 58, 78)), "iscrowd": 1},
        ]
    }
    picture = Visualizer(_image()).draw_dataset_dict(record).get_image()
    assert picture[24, 34, 0] > 200 and picture[24, 34, 2] < 60, "the keypoint"
    assert (picture[30:35, 40:45] != GREY).any() and (picture[50, 70] != GREY).any()
    record["annotations"][1]["keypoints"] = [1, 2, 2, 3, 4, 2]
    with pytest.raises(ValueError, match=r"\[3, 6\] numbers"):
        Visualizer(_image()).draw_dataset_dict(record)


@pytest.mark.parametrize(
    "objects, message",
    [
        ({"masks": np.zeros((1, 59, 80), bool)}, r"shape \(59, 80\).*\(60, 80\)"),
        ({"masks": [_rle(np.zeros((10, 10), bool))]}, r"RLE has size \[10, 10\].*\[60, 80\]"),
        ({"masks": np.zeros((60, 80), bool)}, r"\(N, height, width\), found \(60, 80\)"),
        ({"masks": [[[1, 2, 3, 4, 5, 6, 7]]]}, "7 numbers"),
        ({"keypoints": np.zeros((5, 3))}, r"found \(5, 3\)"),
        ({"masks": [None, None], "boxes": [[1, 2, 3, 4]]}, "1 boxes and 2 masks"),
        ({"keypoints": np.ones((1, 4, 3))}, "4 keypoints, but 5 keypoint_names"),
    ],
)
def test_wrong_masks_and_keypoints_are_named(objects, message):
    with pytest.raises(ValueError, match=message):
        Visualizer(_image(), _person_metadata()).overlay_instances(**objects)
