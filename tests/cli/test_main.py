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


def test_shapes(tmp_path, capsys):
    command = ["shapes", "--output", str(tmp_path / "s"), "--train", "3", "--val", "2", "--size", "64", "--seed", "5"]
    assert main(command) == 0
    assert len(list((tmp_path / "s" / "train").iterdir())) == 3
    assert main(command) == 0
    assert main([*command, "--train", "4"]) == 2
    assert "retinanet-ext shapes: error:" in capsys.readouterr().err
    assert main([*command, "--train", "4", "--overwrite"]) == 0
    assert len(list((tmp_path / "s" / "train").iterdir())) == 4
