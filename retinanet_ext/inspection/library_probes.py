"""Short programs that import one library, use it once and print what was found. An error ends them."""

TORCH = """
import torch
left = torch.ones(8, 8) @ torch.ones(8, 8)
assert left.sum().item() == 512, f"a product of matrices is {left.sum().item()} instead of 512"
print(f"{torch.__version__}, built for CUDA {torch.version.cuda}, {torch.get_num_threads()} threads")
"""

TORCHVISION = """
import torch, torchvision
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
scores = torch.tensor([0.5, 0.9, 0.1])
device = "cuda" if torch.cuda.is_available() else "cpu"
kept = torchvision.ops.nms(boxes.to(device), scores.to(device), 0.5).tolist()
assert kept == [1, 2], f"NMS keeps {kept} instead of [1, 2]"
features = torch.ones(1, 1, 8, 8, device=device)
pooled = torchvision.ops.roi_align(features, [boxes[:1].to(device) / 2], 2)
assert abs(pooled.sum().item() - 4) < 1e-4, f"RoIAlign of ones gives {pooled.sum().item()} instead of 4"
print(f"{torchvision.__version__}, NMS and RoIAlign work on {device}")
"""

CUDA = """
import torch
if not torch.cuda.is_available():
    built = torch.version.cuda
    print(f"torch {torch.__version__} is built without CUDA" if built is None else f"torch is built for CUDA {built}")
else:
    names = []
    for index in range(torch.cuda.device_count()):
        values = torch.ones(8, 8, device=f"cuda:{index}")
        assert (values @ values).sum().item() == 512
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        names.append(f"GPU {index} {torch.cuda.get_device_name(index)} (compute {major}.{minor}), "
                     f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    print("; ".join(names))
"""

TRITON = """
import triton
print(triton.__version__)
"""

DETECTRON2 = """
import importlib.util
spec = importlib.util.find_spec("detectron2")
if spec is None or spec.origin is None:
    print("missing")
else:
    import torch, detectron2
    from detectron2 import _C
    import detectron2.config, detectron2.data, detectron2.engine, detectron2.evaluation, detectron2.modeling
    boxes = torch.tensor([[0.0, 0, 10, 10, 0], [1, 1, 10, 10, 0]])
    detectron2.layers.nms_rotated(boxes, torch.tensor([0.5, 0.9]), 0.5)
    print(f"{detectron2.__version__}, in {spec.origin.rpartition('/')[0]}; its compiled operators work")
"""

ENGINE = """
import os
from retinanet_ext import __version__
from retinanet_ext.d2 import ENGINE
wanted = os.environ.get("RETINANET_EXT_ENGINE", "auto")
print(f"{ENGINE} (RETINANET_EXT_ENGINE is {wanted}), retinanet_ext {__version__}")
"""

OPENCV = """
import cv2
assert hasattr(cv2, "imdecode"), "cv2 has no functions: its installation is broken"
assert hasattr(cv2, "CascadeClassifier"), f"cv2 {cv2.__version__} has no CascadeClassifier, which finds faces"
print(cv2.__version__)
"""
