"""What a two-stage model computes on the engine that RETINANET_EXT_ENGINE names, for ``test_two_stage_engines.py``.

python -m tests.instance.side_by_side_worker FOLDER CONFIG_FILE ...

Writes FOLDER/ENGINE/NAME.pth for each file, and FOLDER/NAME.pth, the weights, if it does not exist: the second engine
gets those of the first.
"""

import sys
from pathlib import Path

import torch

from retinanet_ext import d2
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (folder / d2.ENGINE).mkdir(exist_ok=True)
    for file in map(Path, sys.argv[2:]):
        torch.manual_seed(0)
        # Detectron2's own class there, and MaskRCNN on `lite`.
        model = d2.build_model(tiny_config(str(file), "GeneralizedRCNN"))
        weights = folder / f"{file.stem}.pth"
        if weights.exists():
            model.load_state_dict(torch.load(weights))  # strict: both engines have the same names
        else:
            tame(model)
            torch.save(model.state_dict(), weights)
        torch.save(compute(model), folder / d2.ENGINE / weights.name)
