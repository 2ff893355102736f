import pytest
import yaml

from retinanet_ext.lite.cfg_node import CfgNode, configurable, get_cfg


def write(folder, name, text):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def test_get_cfg_gives_independent_trees():
    first, second = get_cfg(), get_cfg()
    first.SOLVER.MAX_ITER = 7
    first.DATALOADER.NUM_WORKERS = 0
    assert second.SOLVER.MAX_ITER == 40000
    assert second.DATALOADER.NUM_WORKERS == 4


def test_bases_are_relative_to_the_file_and_the_nearest_one_wins(tmp_path):
    write(tmp_path, "base.yaml", "SEED: 1\nSOLVER: {MAX_ITER: 10, GAMMA: 0.5}\n")
    write(tmp_path, "sub/middle.yaml", "_BASE_: ../base.yaml\nSOLVER: {MAX_ITER: 20}\n")
    leaf = write(tmp_path, "sub/leaf.yaml", "_BASE_: middle.yaml\nSOLVER: {STEPS: [5, 6]}\n")
    cfg = get_cfg()
    cfg.merge_from_file(leaf)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA, cfg.SOLVER.STEPS) == (1, 20, 0.5, (5, 6))


def test_a_later_base_of_a_list_goes_before_an_earlier_one(tmp_path):
    write(tmp_path, "a.yaml", "SEED: 1\nVIS_PERIOD: 1\n")
    write(tmp_path, "b.yaml", "SEED: 2\n")
    cfg = get_cfg()
    cfg.merge_from_file(write(tmp_path, "leaf.yaml", "_BASE_: [a.yaml, b.yaml]\n"))
    assert (cfg.SEED, cfg.VIS_PERIOD) == (2, 1)


def test_dump_read_back_is_the_same_tree(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.STEPS", "(3, 4)", "MODEL.WEIGHTS", "a.pth", "SOLVER.WEIGHT_DECAY_BIAS", "0.5"])
    again = get_cfg()
    again.merge_from_file(write(tmp_path, "config.yaml", cfg.dump()))
    assert again == cfg


def test_frozen_tree_refuses_changes_and_its_clone_is_as_frozen():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError, match="immutable"):
        cfg.SOLVER.MAX_ITER = 1
    clone = cfg.clone()
    clone.defrost()
    clone.SOLVER.MAX_ITER = 1
    assert cfg.SOLVER.MAX_ITER == 40000


def test_unsafe_tag_error_names_file_line_tag_and_the_numbers(tmp_path):
    base = write(
        tmp_path,
        "base.yaml",
        "MODEL:\n  ANCHOR_GENERATOR:\n    SIZES: !!python/object/apply:eval "
        '["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]"]\n',
    )
    leaf = write(tmp_path, "leaf.yaml", "_BASE_: base.yaml\n")
    with pytest.raises(ValueError, match="base.yaml, line 3: the tag !!python/object/apply:eval") as caught:
        get_cfg().merge_from_file(leaf, allow_unsafe=True)
    assert str(base) in str(caught.value)
    sizes = yaml.safe_load(str(caught.value).rsplit("`", 2)[1])["SIZES"]
    assert len(sizes) == 5
    # 32 * 2^(1/3) and 512 * 2^(2/3): cubed and divided by 2 and by 4 they are 32^3 and 512^3.
    assert sizes[0][1] ** 3 / 2 == pytest.approx(32**3, rel=1e-14)
    assert sizes[4][2] ** 3 / 4 == pytest.approx(512**3, rel=1e-14)


def test_unsafe_tag_is_not_executed(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path, "bad.yaml", f"SEED: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(ValueError, match="os.mkdir.*plain YAML"):
        get_cfg().merge_from_file(path, allow_unsafe=True)
    assert not canary.exists()


@pytest.mark.parametrize(
    "text, error, message",
    [
        (
            "SOLVER: {MAX_ITERS: 3}",
            KeyError,
            "cfg.yaml.*'SOLVER.MAX_ITERS' does not exist; nearest: SOLVER.MAX_ITER",
        ),
        ("BASE_LR: 0.1", KeyError, "nearest: SOLVER.BASE_LR"),
        ("SOLVER: {MAX_ITER: many}", ValueError, "cfg.yaml.*SOLVER.MAX_ITER"),
        ("SOLVER: 3", ValueError, "SOLVER"),
        ("VERSION: 1", ValueError, "VERSION is 1; only 2"),
        ("a: [", ValueError, "cfg.yaml is not valid YAML"),
        ("- a", TypeError, "cfg.yaml must hold `KEY: value` lines, found list"),
        ("", TypeError, "found NoneType"),
        ("_BASE_: none.yaml", FileNotFoundError, "cfg.yaml: its _BASE_ 'none.yaml' was not found"),
        ("_BASE_: base.yaml\nSOLVER: 3", ValueError, "cfg.yaml: SOLVER is a section"),
    ],
)
def test_bad_file_errors_name_file_and_key(tmp_path, text, error, message):
    write(tmp_path, "base.yaml", "SOLVER: {MAX_ITER: 1}\n")
    with pytest.raises(error, match=message):
        get_cfg().merge_from_file(write(tmp_path, "cfg.yaml", text))


@pytest.mark.parametrize(
    "overrides, error, message",
    [
        (["MODEL.RETINANET.NUM_CLASES", 3], KeyError, "nearest: MODEL.RETINANET.NUM_CLASSES"),
        (["SEED.X", 3], KeyError, "SEED.X"),
        (["SEED"], ValueError, "pairs of KEY VALUE"),
        (["SEED", "a"], ValueError, "SEED"),
    ],
)
def test_bad_override_errors_name_the_key(overrides, error, message):
    with pytest.raises(error, match=message):
        get_cfg().merge_from_list(overrides)


def test_a_failed_merge_of_a_file_changes_nothing(tmp_path):
    cfg = get_cfg()
    with pytest.raises(KeyError):
        cfg.merge_from_file(write(tmp_path, "cfg.yaml", "SEED: 3\nSOLVER: {NOPE: 1}\n"))
    assert cfg == get_cfg()


def test_new_keys_are_taken_where_the_tree_allows_them():
    cfg = CfgNode(new_allowed=True)
    cfg.merge_from_other_cfg(CfgNode({"A": {"B": 1}}))
    assert cfg.A.B == 1


class Part:
    @configurable
    def __init__(self, a, b=2):
        self.values = (a, b)

    @classmethod
    def from_config(cls, cfg, scale=1):
        return {"a": cfg.SOLVER.MAX_ITER * scale}


def test_configurable_class_call_forms():
    cfg = get_cfg()
    assert Part(1).values == Part(a=1).values == (1, 2)
    assert Part(cfg).values == Part(cfg=cfg).values == (40000, 2)
    assert Part(cfg, b=5).values == (40000, 5)
    assert Part(cfg, a=1).values == (1, 2)
    assert Part(cfg, 3).values == Part(cfg, scale=3, b=2).values == (120000, 2)


def test_configurable_subclass_uses_its_own_from_config():
    class Child(Part):
        @classmethod
        def from_config(cls, cfg):
            return {**super().from_config(cfg), "b": -1}

    assert Child(get_cfg()).values == (40000, -1)


def test_configurable_function_call_forms():
    @configurable(from_config=lambda cfg, x=1: {"a": cfg.SEED * x})
    def build(a, b=2):
        return a, b

    cfg = get_cfg()
    assert build(1) == (1, 2)
    assert build(cfg) == build(cfg=cfg) == (-1, 2)
    assert build(cfg, x=3, b=4) == (-3, 4)


def test_from_config_with_keyword_arguments_of_its_own_gets_all_of_them():
    @configurable(from_config=lambda cfg, **kwargs: {"a": kwargs["b"] + 1})
    def build(a):
        return a

    assert build(get_cfg(), b=1) == 2


def test_configurable_misuse_is_explained():
    class NoFromConfig:
        @configurable
        def __init__(self, a):
            pass

    class NoClassMethod(NoFromConfig):
        def from_config(self, cfg):
            pass

    for arguments in ((get_cfg(),), (1,)):  # also without a config
        with pytest.raises(AttributeError, match="NoFromConfig needs a classmethod from_config"):
            NoFromConfig(*arguments)
        with pytest.raises(TypeError, match="NoClassMethod needs a classmethod from_config"):
            NoClassMethod(*arguments)
    with pytest.raises(TypeError, match="@configurable on __init__"):
        configurable(lambda a: a)
    with pytest.raises(TypeError, match="must take `cfg`"):
        configurable(from_config=lambda settings: {})
