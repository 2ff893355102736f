"""Evaluation by two processes over gloo: only the main one has a result, equal to that of a single process."""

import json
import random

import pytest
import torch
import torch.multiprocessing as mp

from retinanet_ext.lite.data.catalog import DatasetCatalog, MetadataCatalog
from retinanet_ext.lite.evaluation import COCOEvaluator, DatasetEvaluators, inference_on_dataset
from retinanet_ext.lite.structures import Boxes, BoxMode, Instances

NAME = "evaluation_distributed"


def _records():
    rng = random.Random(0)
    records = []
    for image_id in range(9):
        corners = [(rng.randint(0, 300), rng.randint(0, 300)) for _ in range(4)]
        annotations = [
            {"bbox": [x, y, 60, 60], "bbox_mode": BoxMode.XYWH_ABS, "category_id": rng.randint(0, 1)}
            for x, y in corners
        ]
        record = {"file_name": f"{image_id}.jpg", "image_id": image_id, "height": 400, "width": 400}
        records.append({**record, "annotations": annotations})
    return records


def _model(batch):
    """Predicts moved ground truth; all scores are equal, so that an effect of the image order would show."""
    outputs = []
    for record in batch:
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]]
        classes = torch.tensor([a["category_id"] for a in record["annotations"]])
        moved = torch.tensor(boxes, dtype=torch.float32) + 3 * (record["image_id"] % 4)
        scores = torch.full((len(boxes),), 0.5)
        instances = Instances((400, 400), pred_boxes=Boxes(moved), scores=scores, pred_classes=classes)
        outputs.append({"instances": instances})
    return outputs


def _evaluate(records):
    DatasetCatalog.register(NAME, _records)
    MetadataCatalog.get(NAME).set(thing_classes=["u", "v"])
    try:
        evaluator = DatasetEvaluators([COCOEvaluator(NAME)])
        return inference_on_dataset(_model, [[record] for record in records], evaluator)
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def _process(rank, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    # The first process has the later images; both process image 4, as with a padding sampler.
    results = _evaluate(_records()[4:] if rank == 0 else _records()[:5])
    with open(f"{folder}/{rank}.json", "w") as f:
        json.dump(results, f)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path):
    mp.start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert other == {}
    alone = _evaluate(_records())
    assert 0 < alone["bbox"]["AP"] < 100
    assert main["bbox"] == pytest.approx(alone["bbox"], abs=1e-9, nan_ok=True)
