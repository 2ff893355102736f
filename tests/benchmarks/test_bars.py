import json

import pytest
from PIL import Image

from benchmarks.bars import bars, main


@pytest.fixture
def run():
    """Three rounds; in each, the second row takes 2, 3 and 4 times the seconds of the first."""
    header = {"images": 2, "height": 480, "width": 640}
    rows = {"FocalRetinaNet on lite float32": [1.0, 2.0, 3.0], "RetinaNet on detectron2 float32": [2.0, 6.0, 12.0]}
    return {"header": header, "results": [{"row": name, "seconds": {"step": s}} for name, s in rows.items()]}


def test_medians_quartiles_and_ratios_within_rounds(run):
    first, last = bars(run)
    assert first == ("FocalRetinaNet on lite float32", 2.0, (1.5, 2.5), 3.0)
    assert last[1] == 6.0 and last[3] == 1.0


def test_a_picture_of_two_runs(run, tmp_path):
    inference = {**run, "results": [{**row, "seconds": {"inference": [0.5, 0.5, 0.5]}} for row in run["results"]]}
    for name, content in (("a.json", run), ("b.json", inference)):
        (tmp_path / name).write_text(json.dumps(content))
    main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--output", str(tmp_path / "new" / "speed.png")])
    with Image.open(tmp_path / "new" / "speed.png") as picture:
        assert picture.width > 800
