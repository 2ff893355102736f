import subprocess
import sys

import pytest

from retinanet_ext.cli.main import VERBS, main


def test_help_lists_every_verb(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(verb in text and module.HELP.split()[0] in text for verb, module in VERBS.items())


@pytest.mark.parametrize("arguments", [[], ["fly"], ["shapes"], ["predict", "--input", "x"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_flag_shows_the_usage_of_its_verb(verb, capsys):
    required = {"predict": ["--config-file", "c", "--input", "i", "--output", "o"], "shapes": ["--output", "o"]}
    required["identities"] = ["--output", "o"]
    required |= {"curves": ["--output", "o"], "imbalance": ["--config-file", "c", "--weights", "w"]}
    required |= {"gallery": ["--gallery", "g"], "identify": ["--config-file", "c", "--gallery", "g", "i"]}
    required["identities"] = ["--output", "o"]
    required |= {"cluster": ["--config-file", "c", "--input", "i", "--output", "o"]}
    action = {"ablate": ["run", "table_1b"], "gallery": ["list"], "doctor": ["env"]}.get(verb, [])
    required |= {"thresholds": ["r"], "compare": ["a", "b"], "replay": ["f"]}
    required["calibrate"] = ["--config-file", "c", "--images", "i", "--far", "0.1"]
    required["report"] = ["run"]
    required["verify"] = ["--config-file", "c", "a", "b"]
    with pytest.raises(SystemExit) as caught:
        main([verb, *action, *required.get(verb, []), "--wrong"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert f"usage: retinanet-ext {verb}" in shown and "--wrong" in shown


def test_help_loads_no_heavy_library():
    """PyTorch alone takes seconds to import. One process asks for the help of every verb."""
    code = f"""
import sys
from retinanet_ext.cli.main import main
for verb in {list(VERBS)}:
    try:
        main([verb, "--help"])
    except SystemExit as stop:
        assert stop.code == 0
heavy = {{"torch", "torchvision", "numpy", "matplotlib", "cv2", "scipy", "fvcore", "detectron2"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_importing_the_package_loads_no_torch_and_registers_on_use():
    code = """
import sys, warnings
warnings.simplefilter("error")
import retinanet_ext
assert "torch" not in sys.modules
assert {"load", "load_config", "add_retinanet_ext_config"} <= set(dir(retinanet_ext))
warnings.simplefilter("default")
retinanet_ext.load_config
from retinanet_ext.d2 import META_ARCH_REGISTRY
assert "FocalRetinaNet" in META_ARCH_REGISTRY
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_shapes(tmp_path, capsys):
    command = ["shapes", "--output", str(tmp_path / "s"), "--train", "3", "--val", "2", "--size", "64", "--seed", "5"]
    assert main(command) == 0
    assert len(list((tmp_path / "s" / "train").iterdir())) == 3
    assert main(command) == 0
    assert main([*command, "--train", "4"]) == 2
    assert "retinanet-ext shapes: error:" in capsys.readouterr().err
    assert main([*command, "--train", "4", "--overwrite"]) == 0
    assert len(list((tmp_path / "s" / "train").iterdir())) == 4
