"""Mutated COCO files: checks, training samples and an evaluation work, or one clean error names the file or entry."""

import copy
import faulthandler
import json
import traceback

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, DatasetCatalog, DatasetMapper, Instances, MetadataCatalog
from retinanet_ext.data.checked_mapper import CheckedMapper
from retinanet_ext.data.checked_records import load_checked_dicts, load_training_dicts
from retinanet_ext.data.keypoint_metadata import check_keypoints_are_named
from retinanet_ext.training.trainer import Trainer
from tests.data.coco_faults import HEIGHT, KEYPOINTS, POLYGON, WIDTH, annotation, rle, write

LEGAL_ERRORS = (ValueError, KeyError, TypeError, FileNotFoundError)
HANGS_AFTER = 60  # seconds
JUNK = (
    None, True, False, 0, 1, -1, 2.5, 3, 10**30, 2**31, -(2**63), float("nan"), float("inf"), 1e300, "", "x", "1", "0",
    "640", [], [[]], {}, {"a": 1}, [1], [1, 2], [0, 0, 0, 0], [1, 1, 5, 5], ["a"] * 4, [None] * 4, [[1, 2, 3, 4]],
    [1, 1, -5, 5], [[5, 5, 20, 5, 20, "x"]], {"size": [30, 40], "counts": "zz"}, {"size": "x", "counts": []},
    {"size": [30, 40], "counts": [1, 2, 3]}, {"counts": "a"}, "../../etc/passwd", "/etc/passwd", "a\x00b", "\ud800",
    "nicht_da.png", "é.png", [6, 6, 2] * 3, [6, 6, 9, 1, 1, 1, 0, 0, 0], ["a", 1, 2] * 3, [6, 6, 2], "[" * 50,
)  # fmt: skip


def content():
    first = [
        annotation(1, segmentation=POLYGON, keypoints=KEYPOINTS, num_keypoints=2),
        annotation(2, segmentation=rle(), keypoints=KEYPOINTS, num_keypoints=2),
        annotation(3, segmentation=rle(compressed=False), iscrowd=1),
    ]
    second = [annotation(4, image_id=2, segmentation=POLYGON, keypoints=KEYPOINTS, num_keypoints=2)]
    images = [{"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in (1, 2)]
    category = {"id": 3, "name": "cat", "keypoints": ["a", "b", "c"], "skeleton": [[1, 2]]}
    data = {"info": {}, "images": images, "annotations": first + second, "categories": [category]}
    return copy.deepcopy(data)


def places(value, path=()):
    """Paths of all values inside of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


PLACES = [path for path in places(content()) if len(path) < 5]
mutation = st.tuples(
    st.sampled_from(PLACES), st.sampled_from(("replace", "replace", "replace", "delete", "repeat", "nest")),
    st.sampled_from(JUNK),
)  # fmt: skip


def mutate(data, path, how, junk):
    try:
        for key in path[:-1]:
            data = data[key]
        match how:
            case "replace":
                data[path[-1]] = copy.deepcopy(junk)
            case "delete":
                del data[path[-1]]
            case "repeat":
                data.append(copy.deepcopy(data[path[-1]]))
            case "nest":
                for _ in range(100):
                    data[path[-1]] = [data[path[-1]]]
    except (KeyError, IndexError, TypeError, AttributeError):
        pass  # an earlier mutation took the place away


def run(folder, opts):
    """What a run does with the data: load, check, train on samples, evaluate."""
    custom = [{"NAME": "fuzz", "FORMAT": "coco", "JSON": str(folder / "data.json"), "IMAGES": str(folder)}]
    words = [*opts, "DATASETS.CUSTOM", repr(custom), "DATASETS.TRAIN", "('fuzz',)", "DATASETS.TEST", "('fuzz',)"]
    cfg = load_config("quick/mask_rcnn.yaml", [*words, "OUTPUT_DIR", str(folder / "out"), "MODEL.DEVICE", "cpu"])
    Trainer.check_test_data(cfg)
    records = load_training_dicts(cfg)
    if cfg.MODEL.KEYPOINT_ON:
        check_keypoints_are_named(cfg.DATASETS.TRAIN)
    mapper = CheckedMapper(DatasetMapper(cfg, is_train=True))
    for record in records:
        mapper(copy.deepcopy(record))
    evaluator = Trainer.build_evaluator(cfg, "fuzz")
    evaluator.reset()
    for record in load_checked_dicts(cfg, ["fuzz"], filter_empty=False):
        evaluator.process([record], [{"instances": found(cfg, record["height"], record["width"])}])
    return evaluator.evaluate()


def found(cfg, height, width):
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(torch.tensor([[5.0, 5, 20, 15]]))
    instances.scores, instances.pred_classes = torch.tensor([0.9]), torch.tensor([0])
    if cfg.MODEL.MASK_ON:
        instances.pred_masks = torch.zeros(1, height, width, dtype=torch.bool)
        instances.pred_masks[:, 5:15, 5:20] = True
    if cfg.MODEL.KEYPOINT_ON:
        instances.pred_keypoints = torch.ones(1, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, 3)
    return instances


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, [])
    return tmp_path


def forget():
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in {"fuzz", "fuzz+checked"} & set(catalog.list()):
            catalog.remove(name)


def clean(error, folder):
    """Whether an error was raised on purpose, by this package, and names what is wrong."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    named = any(word in str(error) for word in (str(folder), "data.json", "fuzz", "annotation", "image"))
    return isinstance(error, LEGAL_ERRORS) and "retinanet_ext" in last.filename and named


MASKS = ("MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask")
TASKS = (("MODEL.MASK_ON", "False"), MASKS, (*MASKS, "MODEL.KEYPOINT_ON", "True"))


def test_mutated_coco_files_are_used_or_refused_by_name(folder, times):
    @seed(0)
    @settings(max_examples=times(120), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(mutation, min_size=1, max_size=2), st.sampled_from(("error", "drop", "clip")), st.sampled_from(TASKS)
    )
    def check(mutations, policy, tasks):
        data = content()
        for change in mutations:
            mutate(data, *change)
        (folder / "data.json").write_text(json.dumps(data))
        image_policy = "error" if policy == "error" else "drop"
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        try:
            results = run(folder, (*tasks, "DATASETS.ON_BAD_ANNOTATION", policy, "DATASETS.ON_BAD_IMAGE", image_policy))
            assert np.isnan(results["bbox"]["AP"]) or 0 <= results["bbox"]["AP"] <= 100.1
        except Exception as error:
            if not clean(error, folder):
                raise
        finally:
            faulthandler.cancel_dump_traceback_later()
            forget()

    check()


def test_the_unchanged_file_is_used(folder):
    (folder / "data.json").write_text(json.dumps(content()))
    results = run(folder, TASKS[2])
    forget()
    # One detection for each image. The first image has two objects in one place: a recall of 2/3, 67 of 101 steps.
    assert results["bbox"]["AP50"] == results["segm"]["AP50"] == pytest.approx(100 * 67 / 101)
