"""Class names of a model, where Detectron2's tools look for them."""

from retinanet_ext.config.class_count import num_classes
from retinanet_ext.d2 import CfgNode, MetadataCatalog


def publish_class_names(cfg: CfgNode) -> None:
    """Put ``MODEL.CLASS_NAMES`` into the metadata of the first training dataset, unless that states class names.

    Tools that draw or slice, such as SAHI and Detectron2's demo, build a model from its config and look its class names
    up there, also where the dataset is not registered. A list of another length than the number of classes is not
    published.
    """
    names = cfg.MODEL.get("CLASS_NAMES", [])
    if not names or not cfg.DATASETS.TRAIN or len(names) != num_classes(cfg):
        return
    metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
    if metadata.get("thing_classes", None) is None:
        metadata.thing_classes = list(names)
