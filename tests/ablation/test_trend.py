"""Several studies against the imbalance of their data, compared with arithmetic by hand."""

import csv
import json
import logging
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from retinanet_ext.ablation.trend import leads, read_trend
from retinanet_ext.ablation.trend_report import lead_sentence, write_trend_report
from retinanet_ext.cli.main import main
from retinanet_ext.report.trend_plot import Line, draw_trend, spread
from tests.ablation.fake_study import make_study, write_run, write_study
from tests.ablation.test_study_report import table_of

REFERENCE = (40.0, 41.0, 42.0)


def minus(*differences):
    return tuple(value + difference for value, difference in zip(REFERENCE, differences))


# Foreground anchors of the two logged steps, of 1000 anchors each: 2000 / 20, 2000 / 8, 2000 / 2.
FOREGROUND = {"common": (15, 5), "middle": (3, 5), "rare": (2, 0)}
METRICS = {
    "common": {"fl": REFERENCE, "ce": minus(1, 1, 1), "ohem": minus(1, -1, 0), "alone": REFERENCE},
    "middle": {"fl": REFERENCE, "ce": minus(-3, -3, -4), "ohem": minus(-3, -3, -4)},
    "rare": {"fl": REFERENCE, "ce": minus(-1, -2, -3), "ohem": minus(-3, -3, -4)},
}


def write_level(folder, level, metrics=None, **fields):
    metrics = metrics or METRICS[level]
    curve = [
        {"iteration": 19 + 20 * i, "num_anchors": 1000.0, "num_pos_anchors": float(count)}
        for i, count in enumerate(FOREGROUND[level])
    ]
    data = {"DATASETS": {"TRAIN": [f"{level}_train"], "TEST": [f"{level}_val"]}}
    study = make_study(dict.fromkeys(metrics, {}), baseline="ce")
    return write_study(folder / level, study, metrics, curve=curve, extra=data | fields.pop("extra", {}), **fields)


@pytest.fixture
def folders(tmp_path):
    # Not in the order of their imbalance.
    return [write_level(tmp_path / "studies", level) for level in ("rare", "common", "middle")]


def test_imbalance_orders_the_levels(folders):
    trend = read_trend(folders, "fl")
    assert [(level.name, level.imbalance) for level in trend.levels] == [
        ("common", 100.0), ("middle", 250.0), ("rare", 1000.0),
    ]  # fmt: skip
    assert trend.arms == ("fl", "ce", "ohem") and trend.left_out == ("alone",)


def test_tables(folders, tmp_path):
    written = write_trend_report(folders, tmp_path / "out", reference="fl")
    text = written["README.md"].read_text()
    # Standard deviation 1: half of the interval is 4.302653 / sqrt(3) = 2.484.
    means = table_of(text, r"AP of each arm: mean \[95 % interval\]")
    assert means["fl"] == {"arm": "fl"} | {f"at {x}": r"41.0 \[38.5, 43.5\]" for x in (100, 250, 1000)}
    differences = table_of(text, r"Difference to fl \[95 % interval\]")
    assert differences["ce"] == {
        "arm": "ce", "at 100": r"+1.0 \[+1.0, +1.0\]", "at 250": r"-3.3 \[-4.8, -1.9\]",
        "at 1000": r"-2.0 \[-4.5, +0.5\]",
    }  # fmt: skip
    assert "fl is ahead of ce at 250, but not at the highest imbalance; ce is ahead at 100." in text
    assert "- fl is ahead of ohem from 250 anchors per foreground anchor on." in text
    assert "- Arms of one level only, left out: alone" in text and "Incomplete" not in text
    assert table_of(text, "Levels")["common"]["training data"] == r"common_train"
    rows = {(row["level"], row["arm"]): row for row in csv.DictReader(written["trend.csv"].open())}
    ce = rows["middle", "ce"]
    assert float(ce["difference"]) == pytest.approx(-10 / 3) and float(ce["imbalance"]) == 250
    assert float(ce["difference_low"]) == pytest.approx(-10 / 3 - 4.302653 / 3, rel=1e-6)  # deviation sqrt(1 / 3)
    assert rows["middle", "fl"]["difference"] == ""
    assert r"ce & +1.0 {[}+1.0, +1.0{]} & $-$3.3" in written["tables.tex"].read_text()
    assert written["index.html"].read_text().count("<svg") == 1
    assert ElementTree.parse(written["trend.svg"]).getroot().tag.endswith("svg")


def test_sentences(folders):
    trend = read_trend(folders, "fl")
    ce, _ = leads(trend)
    everywhere = replace(ce, start=trend.levels[0], reference_ahead=trend.levels, arm_ahead=())
    assert lead_sentence(everywhere, trend) == "fl is ahead of ce at every level."
    split = replace(ce, start=trend.levels[2], reference_ahead=(trend.levels[0], trend.levels[2]), arm_ahead=())
    text = "fl is ahead of ce from 1000 anchors per foreground anchor on; also at 100."
    assert lead_sentence(split, trend) == text
    nowhere = replace(ce, start=None, reference_ahead=(), arm_ahead=(), unknown=trend.levels[2:])
    assert lead_sentence(nowhere, trend) == "fl is ahead of ce at no level; no interval at 1000."


def test_missing_runs_are_refused_and_named(folders, tmp_path):
    for seed in (1, 2):
        (folders[0] / "ohem" / f"seed_{seed}" / "status.json").unlink()
    (folders[1] / "alone" / "seed_0" / "status.json").unlink()  # in no comparison
    with pytest.raises(ValueError, match="rare, arm ohem: seed 1 missing, seed 2 missing"):
        write_trend_report(folders, tmp_path / "out", reference="fl")
    text = write_trend_report(folders, tmp_path / "out", reference="fl", allow_missing=True)["README.md"].read_text()
    assert "> - rare, arm ohem: seed 1 missing, seed 2 missing" in text and "arm alone" not in text
    assert table_of(text, r"AP of each arm: mean \[95 % interval\]")["ohem"]["at 1000"] == r"37.0 \[n = 1\]"
    assert "fl is ahead of ohem at 250, but not at the highest imbalance; no interval at 1000." in text


def test_levels_that_differ_in_more_than_the_data_are_refused(folders, tmp_path):
    write_level(tmp_path / "studies", "rare", extra={"SOLVER": {"MAX_ITER": 900}}, commit="d" * 40)
    with pytest.raises(ValueError) as refusal:
        write_trend_report(folders, tmp_path / "out", reference="fl")
    message = str(refusal.value)
    assert "arm ce of rare, seed 1: code is git dddddddddddd, but git cccccccccccc in most runs" in message
    assert "rare, arm ohem: SOLVER.MAX_ITER is 900, but absent in common" in message
    assert "DATASETS" not in message
    text = write_trend_report(folders, tmp_path / "out", reference="fl", allow_mixed=True)["README.md"].read_text()
    assert "> - rare, arm ohem: SOLVER.MAX_ITER is 900, but absent in common" in text


def test_folders_that_make_no_trend(folders, tmp_path):
    with pytest.raises(ValueError, match="two or more study folders of different names"):
        read_trend([folders[0], folders[0]])
    with pytest.raises(ValueError, match="two or more study folders of different names"):
        read_trend([folders[0], write_level(tmp_path / "elsewhere", folders[0].name)])
    with pytest.raises(ValueError, match="reference arm 'alone' is not among the arms of two folders: fl, ce, ohem"):
        read_trend(folders, "alone")
    write_run(folders[0], "fl", 0, 1.0)
    for path in folders[0].glob("*/*/metrics.json"):
        path.write_text('{"iteration": 19, "total_loss": 1.0}\n')
    with pytest.raises(ValueError, match="rare: no run has logged num_anchors"):
        read_trend(folders)
    other = write_level(tmp_path / "other", "rare")
    content = json.loads((other / "study.json").read_text())
    (other / "study.json").write_text(json.dumps({**content, "metric": "bbox/AP50"}))
    with pytest.raises(ValueError, match="different metrics"):
        read_trend([other, folders[1]])


def test_diverged_runs_are_said_in_the_table(folders, tmp_path):
    for seed in range(3):
        (folders[0] / "ohem" / f"seed_{seed}" / "status.json").unlink()
        write_run(folders[0], "ohem", seed, None, state="diverged", reason="nan", extra={"DATASETS": {}})
    written = write_trend_report(folders, tmp_path / "out", reference="fl")
    table = table_of(written["README.md"].read_text(), r"AP of each arm: mean \[95 % interval\]")
    assert table["ohem"]["at 1000"] == "3 diverged"


def test_the_command(folders, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    caplog.set_level(logging.INFO)
    words = ["ablate", "trend", *map(str, folders), "--output", str(tmp_path / "out")]
    assert main([*words, "--baseline", "fl"]) == 0
    assert "trend.svg" in caplog.text and (tmp_path / "out" / "index.html").exists()
    assert main([*words, "--baseline", "nobody"]) == 2
    assert "'nobody' is not among the arms" in capsys.readouterr().err
    assert main(words) == 0  # the baseline of the studies
    assert "Difference to ce" in (tmp_path / "out" / "README.md").read_text()


def test_labels_do_not_overlap():
    assert spread([1.0, 1.1, 5.0], gap=1.0, low=0.0, high=10.0) == [1.0, 2.0, 5.0]
    assert spread([9.9, 9.8], gap=1.0, low=0.0, high=10.0) == [10.0, 9.0]
    lines = [Line(f"arm{i}", [(10.0, 5.0, None, [5.0]), (100.0, 5.0 + 0.01 * i, None, [])]) for i in range(12)]
    svg = draw_trend(lines, "arm0", "x", "y")
    places = [re.search(rf"<!-- arm{i} -->\s*<g [^>]*translate\(\S+ (\S+)\)", svg)[1] for i in range(12)]
    heights = sorted(map(float, places))
    assert min(b - a for a, b in zip(heights, heights[1:])) > 8  # points; the text has 8
    bottom = float(re.search(r'viewBox="0 0 \S+ (\S+)"', svg)[1])
    assert heights[0] > 8 and heights[-1] < bottom
