"""What a two-stage model computes on the engine that RETINANET_EXT_ENGINE names, for ``test_two_stage_engines.py``.

python -m tests.instance.side_by_side_worker FOLDER CONFIG_FILE ...

Writes FOLDER/ENGINE/NAME.pth for each file, and the weights, if there are none yet: the second engine gets those of the
first, from Detectron2 as FOLDER/NAME.pkl, in the form of its model zoo, and from `lite` as FOLDER/NAME.pth.
"""

import pickle
import sys
from pathlib import Path

import torch

from retinanet_ext import d2
from retinanet_ext.checkpoint.weights import load_weights
from tests.instance.tiny_rcnn import tame, tiny_config, two_stage_batch


def compute(model) -> dict:
    inputs = two_stage_batch((96, 128), (128, 96))
    torch.manual_seed(0)
    with d2.EventStorage(0):
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        found = [output["instances"] for output in model.eval()(inputs)]
    detections = []
    for instances in found:
        fields = instances.get_fields()
        fields.pop("pred_keypoint_heatmaps", None)
        detections.append({name: getattr(value, "tensor", value) for name, value in fields.items()})
    losses = {name: loss.item() for name, loss in losses.items()}
    return {"losses": losses, "gradients": gradients, "detections": detections}


def exchange_weights(model, path: Path) -> dict:
    """Load the other engine's weights, or write some; returns the names that did not fit."""
    files = [path.with_suffix(suffix) for suffix in (".pkl", ".pth") if path.with_suffix(suffix).exists()]
    if files:
        report = load_weights(model, str(files[0]), strict=True)._asdict()
        assert set(report.pop("loaded")) == set(model.state_dict())
        return report
    tame(model)
    weights = model.state_dict()
    if d2.ENGINE == "lite":
        torch.save({"model": weights}, path.with_suffix(".pth"))
        return {}
    arrays = {name: value.numpy() for name, value in weights.items()}
    # Older files have these buffers, which no model reads any more.
    arrays["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4).numpy()
    path.with_suffix(".pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2"}))
    return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (folder / d2.ENGINE).mkdir(exist_ok=True)
    for file in map(Path, sys.argv[2:]):
        torch.manual_seed(0)
        # Detectron2's own class there, and MaskRCNN on `lite`.
        model = d2.build_model(tiny_config(str(file), "GeneralizedRCNN"))
        did_not_fit = exchange_weights(model, folder / file.stem)
        result = {"did_not_fit": did_not_fit, **compute(model)}
        torch.save(result, folder / d2.ENGINE / f"{file.stem}.pth")
