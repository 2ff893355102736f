import json
import pickle
import random

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from retinanet_ext.d2 import ENGINE, Instances
from retinanet_ext.ops import EncodedMasks
from retinanet_ext.ops.coco_rle import compress_rle, decode_rle, encode_mask, rle_for_json


@pytest.fixture
def dense(generator):
    masks = torch.rand(5, 20, 30, generator=generator) < 0.5
    masks[3] = False
    return masks


@pytest.fixture
def encoded(dense):
    return EncodedMasks([coco_masks.encode(np.asfortranarray(m.numpy().astype(np.uint8))) for m in dense], (20, 30))


def test_pixels_come_back(dense, encoded):
    assert len(encoded) == 5 and encoded.tensor.equal(dense)
    assert torch.stack(list(encoded)).equal(dense)
    array = np.asarray(encoded)
    assert array.dtype == bool and (array == dense.numpy()).all()
    assert np.asarray(encoded, dtype=np.uint8).sum() == dense.sum()
    assert encoded.any(dim=0).equal(dense.any(dim=0))


def test_one_mask_in_every_form(dense):
    """By hand: down the columns, two zeros, three ones, one zero."""
    mask = np.array([[0, 1], [0, 1], [1, 0]], dtype=bool)
    runs = {"size": (3, 2), "counts": [2, 3, 1]}
    rle = compress_rle(runs)
    assert rle == encode_mask(mask) and compress_rle(rle) is rle and runs["counts"] == [2, 3, 1]
    as_text = json.loads(json.dumps(rle_for_json(rle)))
    for form in (runs, rle, as_text, rle_for_json(runs)):
        decoded = decode_rle(form)
        assert decoded.dtype == bool and decoded.flags.c_contiguous and (decoded == mask).all()


def test_masks_are_encoded_once(dense, encoded):
    assert EncodedMasks.of(dense, (20, 30)).rles == encoded.rles
    assert EncodedMasks.of(encoded, (20, 30)) is encoded


def test_areas(dense, encoded):
    assert encoded.areas().tolist() == dense.sum(dim=(1, 2)).tolist()


def test_areas_of_hundreds_of_masks(dense, encoded):
    assert EncodedMasks(encoded.rles * 60, (20, 30)).areas().tolist() == dense.sum(dim=(1, 2)).tolist() * 60
    assert encoded.nonempty().tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    "index",
    [slice(1, 4), torch.tensor([4, 0, -1]), torch.tensor([True, False, True, False, True]), [2, 2], np.array([1]),
     torch.zeros(0, dtype=torch.long), torch.zeros(5, dtype=torch.bool)],
)  # fmt: skip
def test_an_index_chooses_as_it_does_in_a_tensor(dense, encoded, index):
    assert encoded[index].tensor.equal(dense[index])


def test_an_integer_keeps_the_axis(dense, encoded):
    assert encoded[2].tensor.equal(dense[2:3]) and encoded[-1].tensor.equal(dense[4:5])
    with pytest.raises(IndexError):
        encoded[5]
    with pytest.raises(IndexError, match=r"bool index of shape \(4,\) for 5 masks"):
        encoded[torch.ones(4, dtype=torch.bool)]


def test_cat_and_pickle(dense, encoded):
    again = pickle.loads(pickle.dumps(EncodedMasks.cat([encoded[3:], encoded[:3]])))
    assert again.tensor.equal(torch.cat([dense[3:], dense[:3]]))
    with pytest.raises(ValueError, match="one image size"):
        EncodedMasks.cat([encoded, EncodedMasks([], (5, 5))])


def test_no_masks():
    none = EncodedMasks([], (20, 30))
    assert none.tensor.shape == np.asarray(none).shape == (0, 20, 30)
    assert none.areas().shape == none.nonempty().shape == (0,)
    assert not none.any(dim=0).any() and none.any(dim=0).shape == (20, 30)


def test_a_field_of_instances(dense, encoded):
    instances = Instances((20, 30), pred_masks=encoded, scores=torch.arange(5.0))
    assert instances.to("cpu")[instances.scores > 2].pred_masks.tensor.equal(dense[3:])
    assert Instances.cat([instances[:2], instances[2:]]).pred_masks.tensor.equal(dense)


def test_wrong_rles_are_named(encoded):
    with pytest.raises(ValueError, match=r"rles\[0\] has size \[20, 30\].*but the image has \[30, 20\]"):
        EncodedMasks(encoded.rles, (30, 20))
    with pytest.raises(ValueError, match=r"rles\[0\]\['counts'\] is of type list"):
        EncodedMasks([{"size": [2, 2], "counts": [4]}], (2, 2))


@pytest.mark.skipif(ENGINE != "detectron2", reason="Detectron2's own evaluator and visualizer")
def test_detectron2_evaluates_and_draws_them(dense, encoded):
    from detectron2.data import MetadataCatalog
    from detectron2.evaluation.coco_evaluation import instances_to_coco_json
    from detectron2.structures import Boxes
    from detectron2.utils.visualizer import ColorMode, Visualizer

    boxes = Boxes(torch.tensor([[0.0, 0, 30, 20]]).repeat(5, 1))
    fields = {"pred_boxes": boxes, "scores": torch.rand(5), "pred_classes": torch.zeros(5, dtype=torch.long)}
    ours = Instances((20, 30), pred_masks=encoded, **fields)
    theirs = Instances((20, 30), pred_masks=dense, **fields)
    assert instances_to_coco_json(ours.to("cpu"), 7) == instances_to_coco_json(theirs, 7)

    image = np.zeros((20, 30, 3), np.uint8)
    metadata = MetadataCatalog.get("encoded_masks").set(thing_colors=[[255, 0, 0]], thing_classes=["a"])
    for mode in (ColorMode.SEGMENTATION, ColorMode.IMAGE_BW):
        drawn = []
        for found in (ours, theirs):
            np.random.seed(0)
            random.seed(0)
            drawn.append(Visualizer(image, metadata, instance_mode=mode).draw_instance_predictions(found).get_image())
        assert drawn[0].any() and (drawn[0] == drawn[1]).all()
