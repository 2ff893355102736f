"""The model under measurement, on the engine of this process, and the steps that are timed."""

import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision

import retinanet_ext
from benchmarks.measure import Settings
from retinanet_ext.d2 import Boxes, DefaultTrainer, EventStorage, Instances, build_model

CONFIG = Path(__file__).parents[1] / "configs" / "detection" / "retinanet_R_50_FPN_1x.yaml"
BOXES_PER_IMAGE = 8


class Subject:
    """One model with its optimizer and its fixed inputs."""

    def __init__(self, model_name: str, settings: Settings):
        torch.set_num_threads(settings.threads)
        torch.backends.cudnn.allow_tf32 = False  # float32 is what the table says
        torch.manual_seed(0)
        opts = ["MODEL.META_ARCHITECTURE", model_name, "MODEL.DEVICE", settings.device, "MODEL.WEIGHTS", ""]
        opts += ["MODEL.RESNETS.DEPTH", str(settings.depth)]
        opts += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64"] if settings.depth < 50 else []
        # The optimizer does all its work, but the weights stay: every round measures the same computation.
        opts += ["SOLVER.BASE_LR", "0.0"]
        cfg = retinanet_ext.load_config(str(CONFIG), opts, datasets=False)
        self.cuda = settings.device.startswith("cuda")
        self.model = build_model(cfg).train()
        self.optimizer = DefaultTrainer.build_optimizer(cfg, self.model)
        self.inputs = make_inputs(settings, cfg.MODEL.RETINANET.NUM_CLASSES)

    def make_weights(self, path: Path) -> None:
        """Make the random weights behave like trained ones, and save them for the other workers."""
        calibrate(self.model, self.inputs)
        state = self.model.state_dict()
        # Detectron2's RetinaNet has no such buffer, and ours does without.
        state.pop("loss_normalizer.average", None)
        torch.save(state, path)

    def load_weights(self, path: Path) -> None:
        self.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def outputs(self) -> dict:
        """Losses, norm of their gradient, and per image the detections as rows (class, score, box / longer side)."""
        with EventStorage(0):
            losses = self.model(self.inputs)
        sum(losses.values()).backward()
        gradients = [p.grad.double().norm() for p in self.model.parameters() if p.grad is not None]
        self.optimizer.zero_grad()
        detections = [
            np.column_stack([x.pred_classes, x.scores, x.pred_boxes.tensor / max(x.image_size)])
            for x in (result["instances"].to("cpu") for result in self._infer())
        ]
        losses = {name: loss.item() for name, loss in losses.items()}
        return {**losses, "gradient": torch.stack(gradients).norm().item(), "detections": detections}

    def train_step(self) -> dict[str, float]:
        """Seconds of one training step and its parts."""
        with EventStorage(0):
            times = [self._now()]
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

    def describe(self) -> dict[str, str]:
        gpu = {"GPU": torch.cuda.get_device_name()} if self.cuda else {}
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        return {**gpu, **versions, "retinanet_ext": retinanet_ext.__version__}

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


def make_inputs(settings: Settings, num_classes: int) -> list[dict]:
    """The same random images and boxes in every process: boxes of 5 to 60 % of the shorter side, 1:2 to 2:1."""
    random = np.random.default_rng(0)
    image_size = np.array([settings.height, settings.width])
    inputs = []
    for _ in range(settings.images):
        side = image_size.min() * 0.05 * 12 ** random.random(BOXES_PER_IMAGE)
        stretch = 2 ** random.uniform(-0.5, 0.5, BOXES_PER_IMAGE)
        size = np.stack([side * stretch, side / stretch], axis=1)  # (width, height), inside the image at most
        corner = random.random((BOXES_PER_IMAGE, 2)) * (image_size[::-1] - size)
        instances = Instances(tuple(image_size.tolist()))
        instances.gt_boxes = Boxes(torch.from_numpy(np.hstack([corner, corner + size])))
        instances.gt_classes = torch.from_numpy(random.integers(num_classes, size=BOXES_PER_IMAGE))
        image = torch.from_numpy(random.integers(256, size=(3, *image_size), dtype=np.uint8))
        inputs.append({"image": image, "instances": instances})
    return inputs


@torch.no_grad()
def calibrate(model: torch.nn.Module, inputs: list[dict]) -> None:
    """Give an untrained model the frozen statistics of its inputs, and a trained model's spread of predictions.

    Without the former its features explode. With the latter a few predictions in ten thousand pass the score
    threshold, so that there is something to sort and to suppress.
    """

    def take_statistics(norm, arguments):
        norm.running_mean.copy_(arguments[0].mean((0, 2, 3)))
        norm.running_var.copy_(arguments[0].var((0, 2, 3)))

    norms = [m for m in model.modules() if type(m).__name__ == "FrozenBatchNorm2d"]
    hooks = [norm.register_forward_pre_hook(take_statistics) for norm in norms]
    features = model.backbone(model.preprocess_image(inputs).tensor)
    for hook in hooks:
        hook.remove()
    outputs = model.head([features[name] for name in model.head_in_features])
    for layer, levels, spread in zip((model.head.cls_score, model.head.bbox_pred), outputs, (0.5, 0.1)):
        layer.weight.mul_(spread / torch.cat([level.flatten() for level in levels]).std())
