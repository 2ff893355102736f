"""The seam: the one file that knows which engine runs underneath.

Every engine name that the extension uses is imported from here, bound either to Detectron2 or to
:mod:`retinanet_ext.lite`, the engine that ships with this package. The two offer the same names, call shapes,
config keys and numbers; ``tests/contract`` checks this.

``RETINANET_EXT_ENGINE`` chooses: ``auto`` (default: Detectron2 where it is installed, else ``lite``),
``detectron2`` or ``lite``. The choice is made once, at import; :data:`ENGINE` holds it.
"""

import importlib.util
import logging
import os
import warnings

ENGINES = ("detectron2", "lite")


def _detectron2_is_installed() -> bool:
    spec = importlib.util.find_spec("detectron2")
    # Any folder called `detectron2`, such as a fresh clone of its repository in the working directory, is importable as
    # a namespace package, which has no origin. That is not an installation.
    return spec is not None and spec.origin is not None


def _choose_engine() -> str:
    wanted = os.environ.get("RETINANET_EXT_ENGINE", "auto")
    if wanted not in ("auto", *ENGINES):
        raise ValueError(f"RETINANET_EXT_ENGINE is {wanted!r}; legal values: auto, {', '.join(ENGINES)}")
    if wanted == "lite":
        return "lite"
    if _detectron2_is_installed():
        return "detectron2"
    if wanted == "detectron2":
        raise ModuleNotFoundError(
            "RETINANET_EXT_ENGINE=detectron2, but Detectron2 is not installed in this environment. "
            "Install it (https://detectron2.readthedocs.io/tutorials/install.html), or unset the variable: "
            "the embedded engine `lite` does not need it."
        )
    return "lite"


ENGINE = _choose_engine()

if ENGINE == "detectron2":
    try:
        with warnings.catch_warnings():
            # fvcore scripts its losses at import, and torch warns that scripting is deprecated.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*")
            from detectron2.checkpoint import DetectionCheckpointer
            from detectron2.config import CfgNode, configurable, get_cfg
            from detectron2.data import (
                DatasetCatalog,
                DatasetMapper,
                MetadataCatalog,
                build_detection_test_loader,
                build_detection_train_loader,
                detection_utils,
            )
            from detectron2.data import transforms as T
            from detectron2.data.detection_utils import SizeMismatchError
            from detectron2.engine import (
                DefaultPredictor,
                DefaultTrainer,
                default_argument_parser,
                default_setup,
                hooks,
            )
            from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
            from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
            from detectron2.modeling import (
                BACKBONE_REGISTRY,
                FPN,
                META_ARCH_REGISTRY,
                ROI_KEYPOINT_HEAD_REGISTRY,
                ROI_MASK_HEAD_REGISTRY,
                Backbone,
                DatasetMapperTTA,
                build_anchor_generator,
                build_backbone,
                build_model,
                build_resnet_backbone,
                detector_postprocess,
            )
            from detectron2.modeling.backbone.fpn import LastLevelP6P7
            from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
            from detectron2.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, Keypoints, PolygonMasks
            from detectron2.utils import comm
            from detectron2.utils.events import (
                EventStorage,
                EventWriter,
                TensorboardXWriter,
                get_event_storage,
                has_event_storage,
            )
            from detectron2.utils.logger import setup_logger
            from detectron2.utils.visualizer import ColorMode, Visualizer
    except Exception as error:
        # Falling back to `lite` here would change the engine of a run behind the user's back.
        raise ImportError(
            f"Detectron2 is installed but does not import: {type(error).__name__}: {error}. "
            "Repair it, or set RETINANET_EXT_ENGINE=lite to run on the embedded engine."
        ) from error
else:
    from retinanet_ext.lite import comm
    from retinanet_ext.lite.anchors import build_anchor_generator
    from retinanet_ext.lite.backbone import (
        BACKBONE_REGISTRY,
        FPN,
        Backbone,
        BottleneckBlock,
        LastLevelP6P7,
        ResNet,
        build_backbone,
        build_resnet_backbone,
    )
    from retinanet_ext.lite.cfg_node import CfgNode, configurable, get_cfg
    from retinanet_ext.lite.checkpointer import DetectionCheckpointer
    from retinanet_ext.lite.data import (
        DatasetCatalog,
        DatasetMapper,
        MetadataCatalog,
        build_detection_test_loader,
        build_detection_train_loader,
        detection_utils,
    )
    from retinanet_ext.lite.data import transforms as T
    from retinanet_ext.lite.data.detection_utils import SizeMismatchError
    from retinanet_ext.lite.data.tta_mapper import DatasetMapperTTA
    from retinanet_ext.lite.engine import (
        DefaultPredictor,
        DefaultTrainer,
        default_argument_parser,
        default_setup,
        hooks,
    )
    from retinanet_ext.lite.evaluation import COCOEvaluator, DatasetEvaluator
    from retinanet_ext.lite.events import (
        EventStorage,
        EventWriter,
        TensorboardXWriter,
        get_event_storage,
        has_event_storage,
    )
    from retinanet_ext.lite.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
    from retinanet_ext.lite.logger import setup_logger
    from retinanet_ext.lite.meta_arch import (
        META_ARCH_REGISTRY,
        ROI_KEYPOINT_HEAD_REGISTRY,
        ROI_MASK_HEAD_REGISTRY,
        build_model,
        detector_postprocess,
    )
    from retinanet_ext.lite.structures import BitMasks, Boxes, BoxMode, ImageList, Instances, Keypoints, PolygonMasks
    from retinanet_ext.lite.visualizer import ColorMode, Visualizer

logging.getLogger(__name__).info("retinanet_ext runs on the engine %r", ENGINE)
