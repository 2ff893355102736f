import csv

from PIL import Image

from retinanet_ext.cli.main import main


def test_pictures_and_values(tmp_path, capsys):
    assert main(["curves", "--output", str(tmp_path / "out")]) == 0
    names = ["figure_1", "figure_5", "figure_6"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("csv", "png")
    )
    for name, columns in zip(names, (6, 5, 5)):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert min(picture.size) > 500 and len(set(picture.convert("L").getdata())) > 50
        with (tmp_path / "out" / f"{name}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert len(header) == columns and len(rows) > 500 and all(len(row) == columns for row in rows)
    assert "figure_5.png" in capsys.readouterr().out


def test_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    assert main(["curves", "--output", str(tmp_path / "out")]) == 2
    assert "retinanet-ext curves: error:" in capsys.readouterr().err
