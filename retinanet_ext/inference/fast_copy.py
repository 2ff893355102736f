"""A faster copy of a model, for inference only."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from retinanet_ext.d2 import CfgNode, FrozenBatchNorm2d
from retinanet_ext.detection.convolutions import fuse_norms
from retinanet_ext.detection.head import PerLevelBatchNorm
from retinanet_ext.detection.retinanet import FocalRetinaNet
from retinanet_ext.embedding import FaceNet
from retinanet_ext.instance import InstanceRetinaNet, MaskRCNN
from retinanet_ext.machine.processes import bare_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Largest allowed difference between two ways to compute the same network, relative to the largest output.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 2e-2}
MAX_GRAPHS = 8

Model = FocalRetinaNet | InstanceRetinaNet | MaskRCNN | FaceNet
Outputs = tuple[list[torch.Tensor], ...]
Network = Callable[[torch.Tensor], Outputs]


def optimize_for_inference(
    model: Model, *, dtype: str = "float32", compile: bool = False, cuda_graphs: bool = False
) -> Model:
    """Copy ``model`` in evaluation mode, with batch norms fused into the convolutions before them.

    The copy gives the detections or embeddings of ``model``, up to the rounding of ``dtype``. It does not follow later
    changes of the model's weights. With ``compile`` or ``cuda_graphs``, the first input is computed the plain way as
    well, and the network's outputs are compared.

    Args:
        model: not changed.
        dtype: type that convolutions and fully connected layers compute in: ``float32``, ``bfloat16`` or (on CUDA)
            ``float16``. Boxes, scores, probabilities of masks and keypoints, and the normalised embeddings are always
            float32.
        compile: use ``torch.compile`` for the model's ``network``, which has no heads on RoIs. Each of the first few
            image sizes costs seconds to minutes; then the network is compiled for any size. Needs a C++ compiler on
            CPU, and Triton on CUDA.
        cuda_graphs: record the kernels of ``network`` for the first ``MAX_GRAPHS`` image sizes that occur twice, and
            replay them without launching each one. Other sizes run as usual.

    Raises:
        TypeError: the model is not a FocalRetinaNet, InstanceRetinaNet, MaskRCNN or FaceNet.
        ValueError: ``dtype`` is unknown or impossible on this device; CUDA graphs without CUDA.
        RuntimeError: at the first input, if the compiled or recorded network fails or computes something else.
    """
    _check(model, dtype, cuda_graphs)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fuse_norms(model)
    _convert(model, DTYPES[dtype])
    plain = model.network
    if compile:
        model.network = _Checked("TEST.COMPILE", torch.compile(plain), plain, TOLERANCES[DTYPES[dtype]])
    if cuda_graphs:
        graphs = CudaGraphs(model.network)
        model.network = _Checked("TEST.CUDA_GRAPHS", graphs, plain, TOLERANCES[DTYPES[dtype]])
    return model


def _check(model: nn.Module, dtype: str, cuda_graphs: bool) -> None:
    if not isinstance(model, Model):
        raise TypeError(
            "optimize_for_inference takes a FocalRetinaNet, InstanceRetinaNet, MaskRCNN or FaceNet, "
            f"got {type(model).__name__}; for other models leave TEST.DTYPE, TEST.COMPILE "
            "and TEST.CUDA_GRAPHS at their defaults"
        )
    if dtype not in DTYPES:
        raise ValueError(f"TEST.DTYPE is {dtype!r}; legal values: {', '.join(DTYPES)}")
    device = model.device.type
    if dtype == "float16" and device != "cuda":
        raise ValueError(f"TEST.DTYPE is 'float16', which needs CUDA, and the model is on {device}; use 'bfloat16'")
    if cuda_graphs and device != "cuda":
        raise ValueError(f"TEST.CUDA_GRAPHS is set, and the model is on {device}; it needs CUDA, set it to False")


def inference_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model``, or the copy for inference that ``TEST.DTYPE``, ``TEST.COMPILE`` and ``TEST.CUDA_GRAPHS`` ask for."""
    settings = _settings(cfg)
    return optimize_for_inference(bare_model(model), **settings) if settings else model


def check_inference_model(cfg: CfgNode, model: nn.Module) -> None:
    """Raise what :func:`inference_model` would, without making the copy."""
    settings = _settings(cfg)
    if settings:
        _check(bare_model(model), settings["dtype"], settings["cuda_graphs"])


def _settings(cfg: CfgNode) -> dict:
    """Keyword arguments of :func:`optimize_for_inference`; empty if the model itself is to be used."""
    plain = {"dtype": "float32", "compile": False, "cuda_graphs": False}
    settings = {"dtype": cfg.TEST.DTYPE, "compile": cfg.TEST.COMPILE, "cuda_graphs": cfg.TEST.CUDA_GRAPHS}
    return {} if settings == plain else settings


def _convert(model: Model, dtype: torch.dtype) -> None:
    """Let the model compute in ``dtype``: convolutions, fully connected layers and group norms are converted.

    Batch norms keep the type of their statistics, and take maps of any type. Other modules that have tensors of their
    own, such as Detectron2's LayerNorm, compute in their own type, on converted maps.
    """
    model.compute_dtype = dtype
    if dtype == torch.float32:
        return
    for module in (module for part in _layers(model) for module in part.modules()):
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm)):
            module.to(dtype)
        elif not isinstance(module, (_BatchNorm, FrozenBatchNorm2d, PerLevelBatchNorm)):
            _keep_type(module, dtype)


def _layers(model: Model) -> list[nn.Module]:
    """The parts of the model that compute on feature maps."""
    if isinstance(model, FaceNet):
        return [model.backbone, model.projection]
    if isinstance(model, MaskRCNN):
        return [model.backbone, model.proposal_generator.rpn_head, model.roi_heads]
    return [model.backbone, model.head, *([model.roi_heads] if isinstance(model, InstanceRetinaNet) else [])]


def _keep_type(module: nn.Module, dtype: torch.dtype) -> None:
    """Convert the maps that enter and leave a module that has floating-point tensors of its own."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    kept = next((tensor.dtype for tensor in own if tensor.is_floating_point()), dtype)
    if kept == dtype:
        return
    if next(module.children(), None) is not None:
        # Its children compute in `dtype`, so its own tensors must too.
        for tensor in own:
            tensor.data = tensor.data.to(dtype) if tensor.is_floating_point() else tensor.data
        return
    module.register_forward_pre_hook(lambda _, inputs: tuple(_converted(value, kept) for value in inputs))
    module.register_forward_hook(lambda _, inputs, output: _converted(output, dtype))


def _converted(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class CudaGraphs:
    """Calls a network by replaying its kernels, recorded once for each of the first few input shapes.

    The next call overwrites the tensors that a call returned.
    """

    def __init__(self, network: Network):
        self.network = network
        self._seen: set[torch.Size] = set()
        self._graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, Outputs]] = {}
        self._pool = None

    def __call__(self, pixels: torch.Tensor) -> Outputs:
        """
        Args:
            pixels: ``(N, C, H, W)`` on CUDA.
        """
        # Streams and graphs belong to the current device, which need not be that of the model.
        with torch.cuda.device(pixels.device):
            if pixels.shape not in self._graphs:
                # A size that occurs only once is not worth recording.
                if pixels.shape not in self._seen or len(self._graphs) >= MAX_GRAPHS:
                    self._seen.add(pixels.shape)
                    return self.network(pixels)
                self._record(pixels)
            graph, static_pixels, outputs = self._graphs[pixels.shape]
            static_pixels.copy_(pixels)
            graph.replay()
            return outputs

    def _record(self, pixels: torch.Tensor) -> None:
        static_pixels = pixels.clone()
        # Libraries choose and set up their kernels on first use, which cannot be recorded.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.network(static_pixels)
        torch.cuda.current_stream().wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: meanwhile the loader's thread may pin memory, and NCCL's may query events. In the default mode
        # such a call in another thread ends the recording with an error. The stream is given, because the default one
        # is on the device that was current at the first recording of the process.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
            outputs = self.network(static_pixels)
        self._graphs[pixels.shape] = graph, static_pixels, outputs


class _Checked:
    """A network computed in another way. The first call compares its outputs with those of the plain network."""

    def __init__(self, key: str, network: Network, plain: Network, tolerance: float):
        self.key, self.network, self.plain, self.tolerance = key, network, plain, tolerance
        self.is_checked = False

    def __call__(self, pixels: torch.Tensor) -> Outputs:
        if self.is_checked:
            return self.network(pixels)
        expected = self.plain(pixels)
        try:
            self.network(pixels)
            outputs = self.network(pixels)  # a graph is recorded when a size occurs again
        except Exception as error:
            raise RuntimeError(
                f"{self.key} does not work here: {type(error).__name__}: {str(error)[:1000]}. Set {self.key} False, or "
                "make sure that PyTorch finds what it needs: a C++ compiler for the CPU, Triton for CUDA"
            ) from error
        difference = max(_relative_difference(a, b) for a, b in zip(_flat(outputs), _flat(expected), strict=True))
        if not difference <= self.tolerance:
            raise RuntimeError(
                f"with {self.key} the network's outputs are off by {difference:.1e} of the largest one, which is "
                f"more than the allowed {self.tolerance:.0e}; set {self.key} False"
            )
        self.is_checked = True
        return outputs


def _flat(outputs: Outputs) -> Sequence[torch.Tensor]:
    return [tensor for levels in outputs for tensor in levels]


def _relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.numel() == 0:
        return 0.0
    scale = expected.abs().max().float().clamp(min=1e-12)
    return ((found.float() - expected.float()).abs().max() / scale).item()
