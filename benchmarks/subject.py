"""The model under measurement, on the engine of this process, and the steps that are timed."""

import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

import retinanet_ext
from retinanet_ext.d2 import Boxes, DefaultTrainer, EventStorage, Instances, build_model

CONFIG = Path(__file__).parents[1] / "configs" / "detection" / "retinanet_R_50_FPN_1x.yaml"


class Subject:
    """One model with its optimizer and its fixed inputs; ``settings``: see ``train_step.parse_arguments``."""

    def __init__(self, model_name: str, settings):
        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 is what the table says
        torch.manual_seed(0)
        opts = ["MODEL.META_ARCHITECTURE", model_name, "MODEL.DEVICE", settings.device, "MODEL.WEIGHTS", ""]
        opts += ["MODEL.RESNETS.DEPTH", str(settings.depth)]
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"] if settings.depth < 50 else []
        # The optimizer does all its work, but the weights stay: every round measures the same computation.
        opts += ["SOLVER.BASE_LR", "0.0"]
        cfg = retinanet_ext.load_config(str(CONFIG), opts, datasets=False)
        self.cuda = settings.device == "cuda"
        self.model = build_model(cfg).train()
        self.optimizer = DefaultTrainer.build_optimizer(cfg, self.model)
        self.inputs = make_inputs(settings, cfg.MODEL.RETINANET.NUM_CLASSES)

    @torch.no_grad()
    def make_weights(self, path: Path) -> None:
        """Make the random weights behave like trained ones, and save them for the other workers."""
        # Without statistics in its frozen norms, the features of a random network explode.
        pixels = 75 * torch.randn(4, 3, 256, 256, generator=torch.Generator().manual_seed(0))
        norms = [m for m in self.model.modules() if type(m).__name__ == "FrozenBatchNorm2d"]
        hooks = [norm.register_forward_pre_hook(_take_statistics) for norm in norms]
        self.model.backbone(pixels.to(self.model.device))
        for hook in hooks:
            hook.remove()
        features = self.model.backbone(self.model.preprocess_image(self.inputs).tensor)
        outputs = self.model.head([features[name] for name in self.model.head_in_features])
        logits, deltas = (torch.cat([level.flatten() for level in levels]) for levels in outputs)
        # One score in a thousand passes the threshold, so that there is something to sort and to suppress.
        score, threshold = self.model.head.cls_score, self.model.test_score_thresh
        found = logits.kthvalue(int(0.999 * len(logits))).values - score.bias[0]
        score.weight.mul_((math.log(threshold / (1 - threshold)) - score.bias[0]) / found)
        self.model.head.bbox_pred.weight.mul_(0.1 / deltas.std())
        state = self.model.state_dict()
        del state["loss_normalizer.average"]  # Detectron2's RetinaNet has none, and ours does without
        torch.save(state, path)

    def load_weights(self, path: Path) -> None:
        self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def outputs(self) -> dict:
        """Losses, norm of their gradient, per image detections: rows (class, score, box / longer side)."""
        with EventStorage(0):
            losses = self.model(self.inputs)
        sum(losses.values()).backward()
        gradients = [p.grad.double().norm() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        detections = [
            np.column_stack([x.pred_classes, x.scores, x.pred_boxes.tensor / max(x.image_size)])
            for x in (result["instances"].to("cpu") for result in self._infer())
        ]
        scalars = {**losses, "gradient": torch.stack(gradients).norm()}
        return {**{name: value.item() for name, value in scalars.items()}, "detections": detections}

    def train_step(self) -> dict[str, float]:
        """Seconds of one training step and its parts."""
        times = [self._now()]
        with EventStorage(0):
            loss = sum(self.model(self.inputs).values())
        times.append(self._now())
        loss.backward()
        times.append(self._now())
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(self._now())
        parts = dict(zip(("forward", "backward", "optimizer"), np.diff(times).tolist()))
        return {**parts, "step": times[-1] - times[0]}

    def inference(self) -> dict[str, float]:
        """Seconds from images to detections."""
        start = self._now()
        self._infer()
        return {"inference": self._now() - start}

    def peak_mib(self) -> float:
        """Most CUDA memory allocated, or on CPU the high-water mark of the process's resident set."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    def versions(self) -> dict[str, str]:
        gpu = {"GPU": torch.cuda.get_device_name()} if self.cuda else {}
        return {**gpu, **{m.__name__: m.__version__ for m in (torch, torchvision, retinanet_ext)}}

    @torch.no_grad()
    def _infer(self) -> list[dict]:
        self.model.eval()
        results = self.model(self.inputs)
        self.model.train()
        return results

    def _now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _take_statistics(norm: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
    norm.running_mean.copy_(arguments[0].mean((0, 2, 3)))
    norm.running_var.copy_(arguments[0].var((0, 2, 3)))


def make_inputs(settings, num_classes: int) -> list[dict]:
    """The same random images in every process, 8 boxes in each: 5 to 60 % of the shorter side, 1:2 to 2:1."""
    random, num_boxes = np.random.default_rng(0), 8
    image_size = np.array([settings.height, settings.width])
    inputs = []
    for _ in range(settings.images):
        side = image_size.min() * 0.05 * 12 ** random.random(num_boxes)
        stretch = 2 ** random.uniform(-0.5, 0.5, num_boxes)
        size = np.stack([side * stretch, side / stretch], axis=1)  # (width, height)
        corner = random.random((num_boxes, 2)) * (image_size[::-1] - size)
        instances = Instances(tuple(image_size.tolist()))
        instances.gt_boxes = Boxes(torch.from_numpy(np.hstack([corner, corner + size])))
        instances.gt_classes = torch.from_numpy(random.integers(num_classes, size=num_boxes))
        image = torch.from_numpy(random.integers(256, size=(3, *image_size), dtype=np.uint8))
        inputs.append({"image": image, "instances": instances})
    return inputs
