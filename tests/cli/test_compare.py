"""`retinanet-ext compare`: paired differences by hand and by pycocotools, refusals, the page, verifications."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_ext.cli.main import main
from tests.evaluation.result_folders import write_evaluation

NAMES = ["ant", "bee"]
BOX, OTHER, FAR = [4, 4, 20, 20], [30, 30, 20, 20], [40, 2, 12, 12]
OBJECTS = [(n, "ant", BOX) for n in range(1, 9)] + [(n, "bee", OTHER) for n in range(1, 5)]


@pytest.fixture
def runs(tmp_path):
    """Folders of two runs: the second finds ants that the first misses in images 1 to 5, and raises an alarm in 8."""
    for n in range(1, 9):
        Image.new("RGB", (64, 64), (n * 20, 40, 60)).save(tmp_path / f"{n}.png")
    bees = [(n, "bee", OTHER, 0.7 + n / 100) for n in range(1, 5)]
    first = [(n, "ant", BOX, 0.8 - n / 100) for n in (6, 7, 8)] + bees
    second = [(n, "ant", BOX, 0.8 - n / 100) for n in range(1, 9)] + bees + [(8, "ant", FAR, 0.95)]
    for name, found in (("a", first), ("b", second)):
        folder = tmp_path / name / "inference" / "insects"
        write_evaluation(folder, NAMES, OBJECTS, found, num_images=8, image_root=tmp_path)
    return tmp_path


def compare(runs, *arguments, first="a", second="b"):
    output = runs / "difference.json"
    code = main(["compare", str(runs / first), str(runs / second), "--output", str(output), *map(str, arguments)])
    return json.loads(output.read_text()) if code == 0 else code


def pycocotools_ap(folder):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations.json")
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "coco_instances_results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[:3]


def test_the_difference_its_interval_and_the_images_that_changed(runs, capsys):
    found = compare(runs, "--page", runs / "page.html", "--samples", "500")
    for name in ("a", "b"):
        expected = pycocotools_ap(runs / name / "inference" / "insects")
        key = {"a": "first", "b": "second"}[name]
        assert [found["metrics"][m][key] for m in ("AP", "AP50", "AP75")] == pytest.approx(expected.tolist())
    change = found["metrics"]["AP"]["change"]
    assert change["value"] == pytest.approx(found["metrics"]["AP"]["second"] - found["metrics"]["AP"]["first"])
    assert 0 < change["low"] <= change["value"] <= change["high"] and found["metrics"]["AP"]["share_better"] > 0.95
    # All bees are found by both, in every resample: the difference is 0 without any spread.
    assert found["metrics"]["AP-bee"]["change"] == {"value": 0, "low": 0, "high": 0, "samples": 500 - without_bees()}
    # F1 of image 5 goes from 0 to 1; in images 1 to 4 the bee was found before, so F1 goes from 2/3 to 1.
    assert found["images"][0]["image_id"] == 5 and found["images"][0]["f1"] == [0, 1]
    assert {one["image_id"] for one in found["images"]} == {1, 2, 3, 4, 5, 8} and found["num_changed"] == 6
    (alarm,) = (one for one in found["images"] if one["image_id"] == 8)
    assert alarm["fp"] == [0, 1] and alarm["f1"] == pytest.approx([1, 2 / 3])
    shown = capsys.readouterr().out
    assert "5.png: F1 0.00 -> 1.00" in shown and "6 images have other counts" in shown
    page = (runs / "page.html").read_text()
    assert page.count("data:image/jpeg;base64") == 12 and "5.png (image 5)" in page and "http" not in page


def without_bees():
    """Resamples (seed 0) of the 8 images without any of the images 1 to 4."""
    weights = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=500)
    return int((weights[:, :4].sum(axis=1) == 0).sum())


def test_a_run_does_not_differ_from_itself(runs):
    found = compare(runs, second="a")
    assert found["num_changed"] == 0 and found["images"] == []
    assert all(one["change"]["low"] == one["change"]["high"] == 0 for one in found["metrics"].values()
               if one["change"]["samples"])  # fmt: skip
    assert found["metrics"]["AP"]["share_better"] == 0.5


def test_result_files_with_their_ground_truth(runs, capsys):
    files = [f"{name}/inference/insects/coco_instances_results.json" for name in "ab"]
    truth = runs / "a" / "inference" / "insects" / "annotations.json"
    whole, files_only = compare(runs), compare(runs, "--ground-truth", truth, first=files[0], second=files[1])
    assert whole["metrics"] == files_only["metrics"]
    assert compare(runs, first=files[0], second=files[1]) == 2
    assert "name its ground truth too: --ground-truth FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("objects", "num_images", "names", "message"), [
    (OBJECTS, 9, NAMES, "the images differ. 0 are only in the first: []; 1 only in the second: [9]"),
    ([*OBJECTS, (3, "ant", FAR)], 8, NAMES, "the ground truth of image 3 differs (2 and 3 objects"),
    ([(n, name, [1, 1, 9, 9]) for n, name, _ in OBJECTS], 8, NAMES, "the ground truth of image 1 differs"),
    (OBJECTS, 8, ["ant", "bee", "fly"], "the classes differ (category id, name): [(3, 'fly')]"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_the_difference(runs, capsys, objects, num_images, names, message):
    folder = runs / "c" / "inference" / "insects"
    write_evaluation(folder, names, objects, [(1, "ant", BOX, 0.5)], num_images=num_images)
    assert compare(runs, second="c") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "message"), [
    (["--samples", "0"], "--samples is 0; legal: 1 or more"),
    (["--task", "segm"], "--task is segm, but"),
    (["--dataset", "other"], "no evaluation of 'other'"),
])  # fmt: skip
def test_wrong_arguments_are_named(runs, capsys, arguments, message):
    assert compare(runs, *arguments) == 2
    assert message in capsys.readouterr().err


def write_pairs(folder, answers):
    folder.mkdir(parents=True)
    lines = ["first,second,same,fold,distance,threshold,accepted"]
    lines += [f"{n}a,{n}b,{same},{n % 2},{distance},1.0,{int(distance <= 1)}" for n, same, distance in answers]
    (folder / "distances.csv").write_text("\n".join(lines) + "\n")


def test_verifications_are_paired(tmp_path, capsys):
    first = [(n, n % 2, 0.5 if n % 2 else 1.5) for n in range(20)]
    second = [(n, same, 1.2 + n / 100 if n in (1, 3, 5) else 0.9 if n == 4 else d) for n, same, d in first]
    worse = [(n, same, 2.0 - distance) for n, same, distance in first]
    write_pairs(tmp_path / "a" / "inference" / "faces", first)
    write_pairs(tmp_path / "b" / "inference" / "faces", second[::-1])
    write_pairs(tmp_path / "c" / "inference" / "faces", worse)
    write_pairs(tmp_path / "d" / "inference" / "faces", first[:-1])
    found = compare(tmp_path)
    assert found["first"] == 100 and found["second"] == 80 and found["change"]["value"] == -20
    assert -45 < found["change"]["low"] < -20 < found["change"]["high"] < 0
    assert [pair[0][0] for pair in found["lost"]] == ["5a", "3a", "1a", "4a"] and found["gained"] == []
    found = compare(tmp_path, second="c")
    assert found["change"] == {"value": -100, "low": -100, "high": -100, "samples": 1000}
    capsys.readouterr()
    assert compare(tmp_path, second="d") == 2
    assert "1 of the 20 pairs of the first are not among the 19 of the second" in capsys.readouterr().err
    write_evaluation(tmp_path / "e" / "inference" / "insects", NAMES, OBJECTS, [], num_images=8)
    assert compare(tmp_path, second="e") == 2
    assert "is a verification of pairs, the other is not" in capsys.readouterr().err
