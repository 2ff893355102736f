"""Coverage and label errors as parts of `doctor data`."""

import json
import shlex

import numpy as np
import pytest
import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import BoxMode, DatasetCatalog, build_model
from retinanet_ext.inspection.datasets.coverage_page import NOT_COMPUTED, POOR, UNFIT, coverage_part
from retinanet_ext.inspection.datasets.doctor_parts import UsableDataset, parts_for
from retinanet_ext.inspection.datasets.label_error_part import NO_MODEL, label_error_part
from retinanet_ext.report.document import Command, Figure, Table, to_markdown
from retinanet_ext.report.html_page import to_html
from tests.builders import shapes_config, small_config


def tiny_objects(side, count=40):
    rng, records = np.random.default_rng(0), []
    for index in range(count):
        box = [*(rng.random(2) * (250 - side)), side, side]
        annotation = {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": index % 2, "iscrowd": 0}
        record = {"file_name": f"{index}.png", "image_id": index, "width": 256, "height": 256}
        records.append({**record, "annotations": [annotation]})
    return UsableDataset("dots", "train", records, ["dot", "spot"])


def test_poor_coverage_is_a_finding_with_tables_drawings_and_a_command():
    cfg, dataset = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)"), tiny_objects(15)
    findings, blocks = coverage_part(cfg, dataset)
    assert [finding.kind for finding in findings[:2]] == [POOR, UNFIT]
    assert findings[1].severity == "note" and findings[1].box is not None and len(findings) == 13
    commands = [block.text for block in blocks if isinstance(block, Command)]
    words = shlex.split(commands[0])
    changed = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)", *words)
    assert coverage_part(changed, tiny_objects(15))[0] == []
    content = json.loads(json.dumps(dataset.statistics))["anchor coverage"]
    assert content["overrides"] == words
    before, after = content["config"]["total"]["covered"][0], content["proposed"]["total"]["covered"][0]
    assert before < 0.3 and after > 0.9
    assert f"coverage rises from {100 * before:.1f} to {100 * after:.1f} %" in findings[0].legal
    tables = [block for block in blocks if isinstance(block, Table)]
    assert tables[0].header == ["", "objects", "config: IoU 0.5", "config: mean IoU", "proposed: IoU 0.5",
                                "proposed: mean IoU"]  # fmt: skip
    assert tables[0].rows[0][:3] == ["all objects", "40", f"{100 * before:.1f} %"]
    assert {row[0] for row in tables[-1].rows} == {"dot", "spot"}
    assert sum(isinstance(block, Figure) for block in blocks) == 2
    assert "ASPECT_RATIOS" in to_markdown("a", blocks) and "<svg" in to_html("a", blocks)


def test_good_coverage_test_sets_and_models_without_anchors_have_no_findings():
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)")
    dataset = tiny_objects(64)
    findings, blocks = coverage_part(cfg, dataset)
    assert findings == [] and not [block for block in blocks if isinstance(block, Command)]
    assert "overrides" not in dataset.statistics["anchor coverage"]
    test_set = UsableDataset("dots", "test", dataset.records, dataset.class_names)
    assert coverage_part(cfg, test_set) == ([], [])
    assert coverage_part(load_config("configs/quick/facenet.yaml", datasets=False), tiny_objects(64)) == ([], [])


def test_a_config_without_a_model_is_a_finding():
    cfg = small_config("MODEL.RETINANET.IN_FEATURES", "['p3', 'p9']")
    (finding,), blocks = coverage_part(cfg, tiny_objects(64))
    assert finding.kind == NOT_COMPUTED and "p9" in finding.found and blocks == []


def test_a_model_is_run_over_the_images(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path, "MODEL.CLASS_NAMES", "[]")
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    name = cfg.DATASETS.TRAIN[0]
    dataset = UsableDataset(name, "train", DatasetCatalog.get(name), cfg.MODEL.CLASS_NAMES)
    findings, blocks = label_error_part(str(tmp_path / "model.pth"))(cfg, dataset)
    # An untrained model finds nothing: its scores are below 0.05.
    count = sum(len(record["annotations"]) for record in dataset.records)
    assert len(findings) == len(dataset.statistics["probable label errors"]) == count > 20
    assert {finding.kind for finding in findings} == {"annotation that the model does not find"}
    assert json.dumps(dataset.statistics) and "Probable label errors" in to_markdown("a", blocks)


@pytest.mark.parametrize("content", [b"", b"text"])
def test_a_damaged_checkpoint_is_a_finding(shapes, tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    cfg = shapes_config(shapes, tmp_path)
    dataset = UsableDataset("shapes", "train", [], cfg.MODEL.CLASS_NAMES)
    (finding,), _ = parts_for(str(tmp_path / "model.pth"))[1](cfg, dataset)
    assert finding.kind == NO_MODEL and "model.pth" in finding.found
