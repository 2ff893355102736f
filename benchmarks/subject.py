"""The model under measurement, on the engine of this process, and its timed steps."""

import contextlib
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

import retinanet_ext
from benchmarks.workers import Row
from retinanet_ext.d2 import (
    Boxes,
    DefaultTrainer,
    EventStorage,
    FrozenBatchNorm2d,
    Instances,
    build_backbone,
    build_model,
)
from retinanet_ext.inference.fast_copy import optimize_for_inference
from retinanet_ext.machine.cpu import keep_freed_memory

CONFIGS = Path(__file__).parents[1] / "configs"


class Subject:
    """One model with its optimizer and its fixed inputs: RetinaNet; a subclass may be another detector."""

    config = CONFIGS / "detection" / "retinanet_R_50_FPN_1x.yaml"
    own_model = "FocalRetinaNet"

    def __init__(self, row: Row, settings):
        """
        Args:
            row: the model, its dtype and its mode.
            settings: see :func:`benchmarks.workers.add_model_options`.
        """
        self.row, model_name, self.device = row, row.model, torch.device(settings.device)
        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.allow_tf32 = False  # the table says float32
        torch.manual_seed(0)
        opts = ["MODEL.META_ARCHITECTURE", model_name, "MODEL.DEVICE", settings.device, "MODEL.WEIGHTS", ""]
        opts += ["MODEL.RESNETS.DEPTH", str(settings.depth), *self.options(settings)]
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"] if settings.depth < 50 else []
        # The optimizer does all its work, but the weights stay the same, so every round measures the same computation.
        opts += ["SOLVER.BASE_LR", "0.0"]
        self.cfg = cfg = retinanet_ext.load_config(str(self.config), opts, datasets=False)
        self.model = build_model(cfg).train()
        if model_name == self.own_model and self.device.type == "cpu":
            keep_freed_memory()  # as the trainer and the predictor of this package do
        self.scaler = torch.amp.GradScaler(settings.device, enabled=row.dtype == "float16")
        self._inference_model = None
        self.optimizer = DefaultTrainer.build_optimizer(cfg, self.model)
        self.inputs = self.make_inputs(settings)

    def options(self, settings) -> list[str]:
        """Overrides of the config, beyond those that every detector needs."""
        return ["MODEL.RETINANET.NUM_CLASSES", str(settings.classes)]

    def make_inputs(self, settings) -> list[dict]:
        """The batch that every round repeats."""
        return make_inputs(settings)

    def dense_head(self, model: torch.nn.Module) -> torch.nn.Module:
        """The part of ``model`` that gives the logits and deltas of each level."""
        return model.head

    @torch.no_grad()
    def make_weights(self, path: Path) -> None:
        """Make the random weights behave like trained ones, and save them for the other workers."""
        # Without statistics in the frozen norms, the features of a random network explode.
        pixels = 75 * torch.randn(4, 3, 256, 256, generator=torch.Generator().manual_seed(0))
        # A separate backbone, because the one in the model folds its norms and never calls them.
        backbone = build_backbone(self.cfg).to(self.model.device)
        backbone.load_state_dict(self.model.backbone.state_dict())
        for module in backbone.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.register_forward_pre_hook(_take_statistics)
        backbone(pixels.to(self.model.device))
        self.model.backbone.load_state_dict(backbone.state_dict())
        self.scale_predictions()
        torch.save(self.state_of_both(), path)

    def scale_predictions(self) -> None:
        """Scale the weights of the predictors, so that the scores and boxes of a random network resemble real ones."""
        features = self.model.backbone(self.model.preprocess_image(self.inputs).tensor)
        outputs = self.model.head([features[name] for name in self.model.head_in_features])
        logits, deltas = (torch.cat([level.flatten() for level in levels]) for levels in outputs)
        # One score in a thousand passes the threshold, so that sorting and suppression have work.
        score, threshold = self.model.head.cls_score, self.model.test_score_thresh
        found = logits.kthvalue(int(0.999 * len(logits))).values - score.bias[0]
        score.weight.mul_((math.log(threshold / (1 - threshold)) - score.bias[0]) / found)
        self.model.head.bbox_pred.weight.mul_(0.1 / deltas.std())

    def state_of_both(self) -> dict:
        """The weights that this package's model and Detectron2's have in common: all."""
        state = self.model.state_dict()
        del state["loss_normalizer.average"]  # Detectron2's RetinaNet has no such buffer, and ours does not need it
        return state

    def load_weights(self, path: Path) -> None:
        self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def train_step_outputs(self) -> dict:
        """Losses, norm of their gradient, and a sample of the network's outputs."""
        self.model.train()
        torch.manual_seed(0)  # two stages draw samples
        with EventStorage(0), self._precision(), sampled_outputs(self.dense_head(self.model)) as network:
            losses = self.model(self.inputs)
        sum(losses.values()).backward()
        gradients = [p.grad.double().norm() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        scalars = {**losses, "gradient": torch.stack(gradients).norm()}
        return {name: value.item() for name, value in scalars.items()} | {"network": network[0]}

    def inference_outputs(self) -> dict:
        """Detections of each image ``(D, 6)``: class, score, box / longer side; sample of the network's outputs."""
        model = self._model_for_inference()
        with sampled_outputs(self.dense_head(model)) as network:
            results = [result["instances"].to("cpu") for result in self._infer(model)]
        detections = [
            np.column_stack([r.pred_classes, r.scores, r.pred_boxes.tensor / max(r.image_size)]) for r in results
        ]
        return {"detections": detections, "network": network[0]}

    def train_step(self) -> dict[str, float]:
        """Seconds of one training step and its parts."""
        times = [self._now()]
        with self._precision():
            loss = self._loss()
        times.append(self._now())
        self.scaler.scale(loss).backward()
        times.append(self._now())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        times.append(self._now())
        parts = dict(zip(("forward", "backward", "optimizer"), np.diff(times).tolist()))
        return {**parts, "step": times[-1] - times[0]}

    def inference(self) -> dict[str, float]:
        """Seconds from images to detections."""
        model = self._model_for_inference()
        start = self._now()
        self._infer(model)
        return {"inference": self._now() - start}

    def _loss(self) -> torch.Tensor:
        self.model.train()
        torch.manual_seed(0)
        with EventStorage(0):
            return sum(self.model(self.inputs).values())

    def _precision(self):
        dtype = getattr(torch, self.row.dtype)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _model_for_inference(self) -> torch.nn.Module:
        """The model itself; for this package in another dtype or mode, the fast copy that the predictor would make."""
        if self._inference_model is None:
            self._inference_model = self.model.eval()
            if self.row.model == self.own_model and self.row[2:] != ("float32", ""):
                modes = {"compile": self.row.mode == "compile", "cuda_graphs": self.row.mode == "CUDA graphs"}
                self._inference_model = optimize_for_inference(self.model, dtype=self.row.dtype, **modes)
        return self._inference_model

    def peak_mib(self) -> float:
        """Peak of the allocated CUDA memory, or on a CPU the high-water mark of the process's resident set."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)

    @torch.no_grad()
    def _infer(self, model: torch.nn.Module) -> list[dict]:
        with self._precision() if model is self.model else contextlib.nullcontext():
            return model(self.inputs)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@contextlib.contextmanager
def sampled_outputs(head: torch.nn.Module):
    """Yield a list; each call of ``head`` adds every 997th logit and every 97th delta of each level to it."""
    samples = []

    def take(module, args, outputs):
        logits, deltas = ([level.permute(0, 2, 3, 1).flatten() for level in levels] for levels in outputs)
        parts = [level[::997] for level in logits] + [level[::97] for level in deltas]
        samples.append(torch.cat([part.detach().float().cpu() for part in parts]).numpy())

    handle = head.register_forward_hook(take)
    yield samples
    handle.remove()


def _take_statistics(norm: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
    norm.running_mean.copy_(arguments[0].mean((0, 2, 3)))
    norm.running_var.copy_(arguments[0].var((0, 2, 3)))


def make_inputs(settings) -> list[dict]:
    """The same random images and boxes in every process; boxes have 5 to 60 % of the shorter side, 1:2 to 2:1."""
    random, num_boxes = np.random.default_rng(0), settings.boxes
    image_size = np.array([settings.height, settings.width])
    inputs = []
    for _ in range(settings.images):
        side = image_size.min() * 0.05 * 12 ** random.random(num_boxes)
        stretch = 2 ** random.uniform(-0.5, 0.5, num_boxes)
        size = np.stack([side * stretch, side / stretch], axis=1)  # (width, height)
        corner = random.random((num_boxes, 2)) * (image_size[::-1] - size)
        instances = Instances(tuple(image_size.tolist()))
        instances.gt_boxes = Boxes(torch.from_numpy(np.hstack([corner, corner + size])))
        instances.gt_classes = torch.from_numpy(random.integers(settings.classes, size=num_boxes))
        image = torch.from_numpy(random.integers(256, size=(3, *image_size), dtype=np.uint8))
        inputs.append({"image": image, "instances": instances})
    return inputs
