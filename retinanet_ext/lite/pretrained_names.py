"""Renames pre-trained backbone weights of other projects to this package's names.

Two spellings are known. Caffe2 files (the MSRA ImageNet models of Detectron) say ``res2_0_branch2a_w``;
torchvision says ``layer1.0.conv1.weight``. Here, as in Detectron2, the name is ``res2.0.conv1.weight``, below the
name of the backbone, which :func:`match_by_suffix` finds.
"""

import re

import torch

_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_CAFFE2_SUFFIXES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
}
_CAFFE2_BLOCK = re.compile(r"(res\d)_(\d+)_branch(1|2a|2b|2c)_(w|b|bn_s|bn_b|bn_rm|bn_riv)")
_CAFFE2_STEM = re.compile(r"(?:res_)?conv1_(w|b|bn_s|bn_b|bn_rm|bn_riv)")
# The ImageNet classifier, and the optimizer state that Caffe2 keeps beside the weights.
_CAFFE2_DROPPED = re.compile(r"(pred|fc1000)_[wb]|.*_momentum")

_TORCHVISION_STEM = re.compile(r"(conv1|bn1)\.(\w+)")
_TORCHVISION_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv[123]|bn[123]|downsample\.[01])\.(\w+)")


def is_caffe2(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether the names are those of a Caffe2 ResNet. State dict: tensors of any shape."""
    return "conv1_w" in state_dict


def is_torchvision(state_dict: dict[str, torch.Tensor]) -> bool:
    """Whether the names are those of a torchvision ResNet or ResNeXt. State dict: tensors of any shape."""
    return "conv1.weight" in state_dict and "layer1.0.conv1.weight" in state_dict


def convert_caffe2(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights (tensors of any shape) of a Caffe2 ResNet; other names stay as they are.

    These files fold the statistics of batch norm into its scale and shift. Missing statistics are therefore
    added as mean 0 and variance 1.
    """
    converted = {}
    for name, value in state_dict.items():
        if _CAFFE2_DROPPED.fullmatch(name):
            continue
        if match := _CAFFE2_BLOCK.fullmatch(name):
            stage, block, branch, suffix = match.groups()
            name = f"{stage}.{block}.{_BRANCHES[branch]}.{_CAFFE2_SUFFIXES[suffix]}"
        elif match := _CAFFE2_STEM.fullmatch(name):
            name = f"stem.conv1.{_CAFFE2_SUFFIXES[match[1]]}"
        converted[name] = value
    for name in [name for name in converted if name.endswith(".norm.weight")]:
        norm = name.removesuffix("weight")
        converted.setdefault(norm + "running_mean", torch.zeros_like(converted[name]))
        converted.setdefault(norm + "running_var", torch.ones_like(converted[name]))
    return converted


def convert_torchvision(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights (tensors of any shape) of a torchvision ResNet; drop its classifier and batch counters."""
    converted = {}
    for name, value in state_dict.items():
        if name.startswith("fc.") or name.endswith(".num_batches_tracked"):
            continue
        if match := _TORCHVISION_BLOCK.fullmatch(name):
            layer, block, part, suffix = match.groups()
            name = f"res{int(layer) + 1}.{block}.{_block_part(part)}.{suffix}"
        elif match := _TORCHVISION_STEM.fullmatch(name):
            part, suffix = match.groups()
            name = f"stem.{_block_part(part)}.{suffix}"
        converted[name] = value
    return converted


def _block_part(part: str) -> str:
    if part.startswith("bn"):
        return f"conv{part[2:]}.norm"
    return {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(part, part)


def match_by_suffix(
    state_dict: dict[str, torch.Tensor], model_names: list[str]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Rename a checkpoint weight to the full name of the model parameter that ends with the weight's name.

    ``res2.0.conv1.weight`` becomes ``backbone.bottom_up.res2.0.conv1.weight``. If several checkpoint names fit
    one parameter, the longest wins; one checkpoint name may serve several parameters.

    Args:
        state_dict: weights by short name, tensors of any shape.
        model_names: full names in the model.

    Returns:
        The matched weights under their full names, followed by the unmatched weights under their own names; and
        the names of the unmatched weights.
    """
    matched, used = {}, set()
    for full_name in model_names:
        parts = full_name.split(".")
        # From the longest suffix, which is the whole name, to the shortest.
        suffixes = (".".join(parts[start:]) for start in range(len(parts)))
        short_name = next((suffix for suffix in suffixes if suffix in state_dict), None)
        if short_name is not None:
            matched[full_name] = state_dict[short_name]
            used.add(short_name)
    unmatched = [name for name in state_dict if name not in used]
    return {**matched, **{name: state_dict[name] for name in unmatched}}, unmatched
