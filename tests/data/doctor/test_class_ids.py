import pytest

from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog, get_cfg
from retinanet_ext.data.doctor.class_ids import config_class_names, dataset_class_names, resolve_num_classes

pytestmark = pytest.mark.usefixtures("catalogs")


def make_config(train, test=(), num_classes=80):
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    return cfg


def register(name, classes):
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(thing_classes=classes)


def test_taken_from_the_data_unless_set():
    register("pets_train", ["cat", "dog"])
    register("pets_val", ["cat", "dog"])
    cfg = make_config(["pets_train"], ["pets_val"])
    assert resolve_num_classes(cfg, num_classes_is_set=False) == 2
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    assert resolve_num_classes(cfg, num_classes_is_set=True) == 2
    assert config_class_names(cfg) == ["cat", "dog"]


def test_a_set_value_that_disagrees():
    register("pets_train", ["cat", "dog"])
    message = r"MODEL\.RETINANET\.NUM_CLASSES is 80, but dataset 'pets_train' has 2 classes: cat, dog"
    with pytest.raises(ValueError, match=message):
        resolve_num_classes(make_config(["pets_train"]), num_classes_is_set=True)


def test_built_in_datasets_have_eighty_classes():
    cfg = make_config(["coco_2017_train"], ["coco_2017_val"], num_classes=80)
    assert resolve_num_classes(cfg, num_classes_is_set=True) == 80


def test_without_datasets_the_config_counts():
    assert resolve_num_classes(make_config([], num_classes=7), num_classes_is_set=False) == 7


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (["cat", "cow"], r"only in 'pets_train': \['dog'\]; only in 'pets_other': \['cow'\]"),
        (["dog", "cat"], r"the same names in another order: \['cat', 'dog'\] and \['dog', 'cat'\]"),
    ],
)
@pytest.mark.parametrize("part", ["TRAIN", "TEST"])
def test_datasets_that_disagree(part, other, message):
    register("pets_train", ["cat", "dog"])
    register("pets_other", other)
    test = ["pets_other"] if part == "TEST" else []
    train = ["pets_train"] + (["pets_other"] if part == "TRAIN" else [])
    with pytest.raises(ValueError, match=message):
        resolve_num_classes(make_config(train, test), num_classes_is_set=False)


def test_names_that_only_loading_finds():
    def load():
        MetadataCatalog.get("lazy").set(thing_classes=["owl"])
        return []

    DatasetCatalog.register("lazy", load)
    assert dataset_class_names("lazy") == ["owl"]


def test_unknown_dataset_and_missing_names():
    register("pets_train", ["cat"])
    with pytest.raises(KeyError, match="'pets_trian' is not registered. Did you mean pets_train"):
        dataset_class_names("pets_trian")
    DatasetCatalog.register("nameless", lambda: [])
    with pytest.raises(ValueError, match="'nameless' has no thing_classes"):
        dataset_class_names("nameless")
