"""The report of a study, compared with arithmetic by hand."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from retinanet_ext.ablation.comparison import compare_arms, short_keys
from retinanet_ext.ablation.results import read_study_folder
from retinanet_ext.ablation.study import arm_config, load_study
from retinanet_ext.ablation.study_report import write_report
from retinanet_ext.report.svg_plots import zoom_limits
from tests.ablation.fake_study import make_study, write_run, write_study

PAPER = {"ce": {"AP": 31.1, "AP50": 49.4}, "fl": {"AP": 34.0}, "fl5": {"AP": 32.2}, "hinge": {}, "no_prior": {}}
STUDY = make_study(PAPER, overrides={"SOLVER.MAX_ITER": 100, "MODEL.DEVICE": "cpu"})
METRICS = {
    "ce": (40.0, 41.0, 42.0),
    "fl": (43.0, 44.0, 46.0),  # minus ce: 3, 3, 4
    "fl5": (39.0, "loss_cls is nan", 41.0),  # minus ce: -1, -1
    "hinge": (1.0, 1.0, 1.0),
    "no_prior": ("loss_cls is inf",) * 3,
}
GAMMAS = {"ce": 0.0, "fl5": 5.0}


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study", STUDY, METRICS, GAMMAS)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def table_of(markdown, heading):
    """For the first table under a heading: first cell of a row -> column -> cell."""
    lines = [line for line in markdown.split(f"## {heading}")[1].splitlines() if line.startswith("|")]
    end = next((i for i in range(2, len(lines)) if lines[i].startswith("| ---")), len(lines) + 1) - 1
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[:end]]
    return {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_main_table(folder):
    text = write_report(folder)["report.md"].read_text()
    table = table_of(text, "AP of each arm")
    assert list(table) == list(PAPER)
    # mean 41, std 1, half of the interval 4.302653 / sqrt(3) = 2.484
    assert table["ce"]["AP, mean ± std"] == "41.0 ± 1.0"
    assert table["ce"]["95 % interval"] == "38.5 to 43.5"
    assert (table["ce"]["n"], table["ce"]["config changes from the baseline"]) == ("3", "(baseline)")
    # 44.333 with std sqrt((16 + 1 + 25) / 9 / 2) = 1.528; difference 10 / 3, std 0.577, half 1.434
    fl = table["fl"]
    assert fl["AP, mean ± std"] == "44.3 ± 1.5"
    assert fl[r"difference to the baseline \[95 %\]"] == r"+3.3 \[+1.9, +4.8\]"
    assert (fl["paper"], fl["paper's difference"]) == ("34.0", "+2.9")
    assert fl["config changes from the baseline"] == "FOCAL_LOSS_GAMMA 2"
    assert fl["time of a run"] == "1:01 min"
    assert (table["fl5"]["n"], table["fl5"]["AP, mean ± std"]) == ("2 (1 diverged)", "40.0 ± 1.4")
    assert table["fl5"][r"difference to the baseline \[95 %\]"] == r"-1.0 \[-1.0, -1.0\]"
    assert (table["no_prior"]["n"], table["no_prior"]["AP, mean ± std"]) == ("0 (3 diverged)", "diverged (3 of 3)")
    assert table["no_prior"][r"difference to the baseline \[95 %\]"] == "–" == table["hinge"]["paper"]


def test_other_sections(folder):
    text = write_report(folder)["report.md"].read_text()
    other = table_of(text, "Other metrics")["ce"]
    assert (other["AP50"], other["AP75"]) == ("61.0 ± 1.0", "42.0 ± 1.0")
    # Here fl > ce > fl5, but in the paper fl > fl5 > ce: one of three pairs is reversed.
    assert "tau between our means and the paper's values is 0.33, over 3 arms" in text
    assert "Pairs of arms: 3, of which 2 ordered as in the paper, 1 the other way round, 0 tied." in text
    pair = table_of(text, "Agreement with the paper's order")["fl5 - ce"]
    assert (pair["paper"], pair["means here"], pair["excludes 0"]) == ("+1.1", "-1.0", "yes")
    assert "hinge (no value in the paper); no_prior (diverged (3 of 3), no value in the paper)" in text
    assert "- fl5, seed 1: diverged after 100 iterations: loss_cls is nan" in text
    assert "5 arms, seeds 0, 1, 2: 11 done, 4 diverged" in text
    assert "started 2026-01-01 to 2026-01-03" in text and "git cccccccccccc" in text and "lite, torch 2.15.0" in text
    # Nothing says where the study's file is, and which overrides it has.
    assert "```bash" not in text and "does not record how the study fake was called" in text


def test_an_arm_lists_no_key_that_its_model_does_not_read(tmp_path):
    loaded = load_study("shapes_losses")
    names = ["ce-balanced", "focal-5", "hinge"]
    arms = [arm for arm in loaded.arms if arm.name in names]
    study = make_study(dict.fromkeys(names, {}))
    folder = write_study(tmp_path, study, dict.fromkeys(names, (1.0, 2.0, 3.0)))
    for arm in arms:
        for seed in study.seeds:
            config = arm_config(loaded, arm, datasets=False).dump()
            (folder / arm.name / f"seed_{seed}" / "config.yaml").write_text(config)
    table = table_of(write_report(folder)["report.md"].read_text(), "AP of each arm")
    changes = {name: table[name]["config changes from the baseline"] for name in names[1:]}
    # The hinge arm has the default alpha, where the baseline has 0.75; but the hinge loss has no alpha.
    assert changes["hinge"] == "RETINANET.CLS_LOSS.NAME hinge"
    of_focal = {"RETINANET.CLS_LOSS.NAME focal", "FOCAL_LOSS_ALPHA 0.25", "FOCAL_LOSS_GAMMA 5"}
    assert set(changes["focal-5"].split(", ")) == of_focal


def test_settings_and_processor(tmp_path):
    solver = {"MAX_ITER": 400, "IMS_PER_BATCH": 8, "BASE_LR": 0.02, "LR_SCHEDULER_NAME": "WarmupMultiStepLR"}
    extra = {
        "DATASETS": {"TRAIN": ["a_train", "b_train"], "TEST": ["a_val"]}, "MODEL.DEVICE": "cpu",
        "SOLVER": {**solver, "STEPS": [300], "WARMUP_ITERS": 50}, "INPUT": {"MIN_SIZE_TRAIN": [192]},
    }  # fmt: skip
    study = make_study({"a": {}, "b": {}})
    metrics = dict.fromkeys("ab", (1.0, 2.0, 3.0))
    folder = write_study(tmp_path, study, metrics, extra=extra, processor="Xeon 9")
    write_run(folder, "b", 0, 1.0, processor="Xeon 9", extra=extra | {"SOLVER": extra["SOLVER"] | {"BASE_LR": 0.04}})
    text = write_report(folder, allow_mixed=True)["report.md"].read_text()
    for line in (
        "- Data: training a_train, b_train, test a_val",
        "- Batch: 8 images, shorter side 192 pixels",
        "- Schedule: 400 iterations, WarmupMultiStepLR, steps 300, warm-up 50",
        "- Learning rate: 0.02; 0.04",
        "- Machine: CPU (Xeon 9, Linux)",
    ):
        assert line in text
    extra["SOLVER"]["LR_SCHEDULER_NAME"] = "WarmupCosineLR"  # has no steps
    text = write_report(write_study(tmp_path, study, metrics, extra=extra))["report.md"].read_text()
    assert "- Schedule: 400 iterations, WarmupCosineLR, warm-up 50" in text


def test_table_by_seed_and_latex(folder):
    written = write_report(folder)
    table = table_of(written["report.md"].read_text(), "AP by seed")
    assert table["fl"] == {"arm": "fl", "seed 0": "43.00", "seed 1": "44.00", "seed 2": "46.00"}
    assert table["fl5"] == {"arm": "fl5", "seed 0": "39.00", "seed 1": "diverged", "seed 2": "41.00"}
    latex = written["tables.tex"].read_text()
    assert r"fl5 & 39.00 & diverged & 41.00 \\" in latex
    assert r"no\_prior & 0 (3 diverged)" in latex and latex.count(r"\begin{tabular}") == 5


def test_csv_files(folder):
    written = write_report(folder)
    runs = rows_of(written["runs.csv"])
    assert len(runs) == 15
    assert (runs[0]["arm"], runs[0]["seed"], runs[0]["bbox/AP"], runs[0]["engine"]) == ("ce", "0", "40.0", "lite")
    assert (runs[7]["state"], runs[7]["reason"], runs[7]["bbox/AP"]) == ("diverged", "loss_cls is nan", "")
    arms = {row["arm"]: row for row in rows_of(written["arms.csv"])}
    assert float(arms["fl"]["difference"]) == pytest.approx(10 / 3)
    assert float(arms["fl"]["difference_low"]) == pytest.approx(10 / 3 - 4.302653 / 3, rel=1e-6)  # std sqrt(1/3)
    assert float(arms["fl"]["paper_difference"]) == pytest.approx(2.9)
    assert arms["fl5"]["config_difference"] == "MODEL.RETINANET.FOCAL_LOSS_GAMMA: 5.0"
    assert (arms["fl5"]["diverged"], arms["fl5"]["n"], arms["ce"]["bbox/AP50_paper"]) == ("1", "2", "49.4")
    assert (arms["no_prior"]["mean"], arms["ce"]["difference"], arms["fl"]["unfinished"]) == ("", "", "0")


class Page(HTMLParser):
    VOID = ("meta", "wbr")

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.count = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(folder):
    text = write_report(folder)["report.html"].read_text()
    page = Page(text)
    assert page.open == []
    assert not [link for link in page.links if not link.startswith("#")]
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert (page.count["svg"], page.count["title"]) == (3, 1)  # no curve of AP, which was not measured during training
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_pictures_beside_the_markdown(folder):
    written = write_report(folder)
    text = written["report.md"].read_text()
    for name in re.findall(r"!\[.*\]\((.*)\)", text):
        drawing = ElementTree.parse(written[name]).getroot()
        assert drawing.tag.endswith("svg")
        assert "var(--" not in written[name].read_text() and "#01020" not in written[name].read_text()


def test_curves_of_ap_are_drawn_where_it_was_measured_on_the_way(folder):
    lines = [{"iteration": 50, "bbox/AP": 20.0}, {"iteration": 100, "bbox/AP": 40.0}]
    write_run(folder, "ce", 0, 40.0, gamma=0.0, curve=lines)
    assert "progress.svg" in write_report(folder)


def test_the_caption_names_only_curves_that_are_drawn(folder):
    lines = [{"iteration": 50, "bbox/AP": 20.0}, {"iteration": 100, "bbox/AP": 40.0}]
    write_run(folder, "fl", 0, 43.0, curve=lines)  # no run of the baseline was evaluated on the way
    text = write_report(folder)["report.md"].read_text()
    assert "![AP during training, a line for each seed](progress.svg)" in text
    write_run(folder, "ce", 0, 40.0, gamma=0.0, curve=lines)
    text = write_report(folder)["report.md"].read_text()
    assert "![AP during training, a line for each seed; grey: ce](progress.svg)" in text


def test_the_same_results_give_the_same_files(folder, tmp_path):
    one, other = write_report(folder, tmp_path / "one"), write_report(folder, tmp_path / "other")
    assert [path.read_bytes() for path in one.values()] == [path.read_bytes() for path in other.values()]
    assert not (folder / "report.md").exists()


def test_a_missing_seed_and_a_failed_run_are_refused_and_named(folder):
    for path in (folder / "fl" / "seed_2").iterdir():
        path.unlink()
    write_run(folder, "hinge", 1, None, state="failed", reason="out of\nmemory")
    with pytest.raises(ValueError) as refusal:
        write_report(folder)
    assert "arm fl, seed 2: missing (no status.json)" in str(refusal.value)
    assert "arm hinge, seed 1: failed (out of memory)" in str(refusal.value)
    text = write_report(folder, allow_missing=True)["report.md"].read_text()
    assert text.index("> - arm fl, seed 2: missing") < text.index("## What was run")
    table = table_of(text, "AP of each arm")
    assert (table["fl"]["n"], table["hinge"]["n"]) == ("2 (1 missing)", "2 (1 failed)")
    assert table["fl"]["AP, mean ± std"].startswith("43.5")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"commit": "d" * 40}, "code is git dddddddddddd, but git cccccccccccc in most runs"),
        ({"diff": "x"}, "code is git cccccccccccc with uncommitted changes 2d711642, but git cccccccccccc in"),
        ({"engine": "detectron2"}, "engine is detectron2, but lite in most runs"),
        ({"torch": "2.6.0"}, "torch is 2.6.0, but 2.15.0 in most runs"),
        ({"gamma": 3.0}, "MODEL.RETINANET.FOCAL_LOSS_GAMMA is 3.0, but 2.0 with seed 0"),
    ],
)
def test_runs_that_are_not_alike_are_refused_and_named(folder, change, message):
    write_run(folder, "hinge", 1, 1.0, **change)
    with pytest.raises(ValueError, match=re.escape(f"arm hinge, seed 1: {message}")):
        write_report(folder, allow_missing=True)
    text = write_report(folder, allow_mixed=True)["report.md"].read_text()
    assert text.index(message) < text.index("## What was run")


def test_keys_that_only_one_engine_has_are_no_difference(folder):
    def add_keys(run, **keys):
        config = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**config, **keys}))

    add_keys(write_run(folder, "hinge", 1, 1.0, engine="detectron2"), KEYPOINT_ON=False, TEST={"AUG": 1})
    add_keys(folder / "hinge" / "seed_0", TEST={"AUG": 2})
    add_keys(write_run(folder, "fl", 0, 43.0, engine="detectron2"), KEYPOINT_ON=False)
    written = write_report(folder, allow_mixed=True)
    text = written["report.md"].read_text()
    warned = [line for line in text.splitlines() if line.startswith("> - ")]
    assert warned == [
        "> - arm fl, seed 0: engine is detectron2, but lite in most runs",
        "> - arm hinge, seed 1: engine is detectron2, but lite in most runs",
        "> - arm hinge, seed 1: TEST.AUG is 1, but 2 with seed 0",
        "> - arm hinge, seed 2: TEST.AUG is absent, but 2 with seed 0",
    ]
    # The same holds for the difference between two arms.
    assert table_of(text, "AP of each arm")["fl"]["config changes from the baseline"] == "FOCAL_LOSS_GAMMA 2"


def test_what_a_failed_run_was_made_with_does_not_matter(folder):
    write_run(folder, "hinge", 1, None, state="failed", engine="detectron2")
    assert "Mixed" not in write_report(folder, allow_missing=True)["report.md"].read_text()


def test_a_run_resumed_with_other_code_is_refused(folder):
    path = folder / "fl" / "seed_0" / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "earlier_starts": [{**record, "engine": "detectron2"}]}))
    with pytest.raises(ValueError, match="arm fl, seed 0: engine is detectron2, then lite, but lite in most runs"):
        write_report(folder)


def test_nothing_to_report(tmp_path):
    folder = write_study(tmp_path / "study", STUDY, {})
    with pytest.raises(ValueError, match="none of the 15 runs has ended"):
        write_report(folder, allow_missing=True)


def test_a_metric_that_was_not_measured_is_refused(folder):
    write_run(folder, "hinge", 1, None, metrics={"segm/AP": 3.0})
    with pytest.raises(ValueError, match=r"arm hinge, seed 1: done, but has no bbox/AP \(its metrics: segm/AP\)"):
        write_report(folder)


def test_an_undefined_metric_is_counted_and_enters_no_mean(folder):
    write_run(folder, "hinge", 1, None)
    text = write_report(folder)["report.md"].read_text()
    assert table_of(text, "AP of each arm")["hinge"]["n"] == "2 (1 undefined)"
    assert "hinge, seed 1: done, bbox/AP is undefined, as when nothing is detected" in text


def test_diverged_runs_enter_no_mean_whatever_they_state(folder):
    path = folder / "fl5" / "seed_1" / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"bbox/AP": 99.0}}))
    table = table_of(write_report(folder)["report.md"].read_text(), "AP of each arm")
    assert table["fl5"]["AP, mean ± std"] == "40.0 ± 1.4"


def test_a_baseline_without_values_gives_no_differences(folder):
    for seed in STUDY.seeds:
        write_run(folder, "ce", seed, None, state="diverged", gamma=0.0)
    table = table_of(write_report(folder)["report.md"].read_text(), "AP of each arm")
    assert table["fl"][r"difference to the baseline \[95 %\]"] == "–"


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    study = replace(STUDY, seeds=(5,))
    folder = write_study(tmp_path / "study", study, dict.fromkeys(PAPER, (40.0,)))
    text = write_report(folder)["report.md"].read_text()
    table = table_of(text, "AP of each arm")
    assert (table["fl"]["AP, mean ± std"], table["fl"]["95 % interval"]) == ("40.0", "–")
    assert table["fl"][r"difference to the baseline \[95 %\]"] == r"+0.0 \[n = 1\]"
    assert "One seed (n = 1) has no deviation and no interval." in text
    assert "tau between our means and the paper's values is undefined" in text


def test_a_study_without_paper(tmp_path):
    study = make_study({"a": {}, "b": {}})
    written = write_report(write_study(tmp_path, study, {"a": (1.0, 2.0, 3.0), "b": (2.0, 3.0, 4.0)}))
    assert "Agreement" not in written["report.md"].read_text()


def test_markup_in_names_and_reasons_is_text(tmp_path):
    study = make_study({"a": {}, "b": {}}, title="A <b> | *c*", note="x < y\nand <script>")
    metrics = {"a": (1.0, 2.0, 3.0), "b": ("<i>|nan|</i>",) * 3}
    written = write_report(write_study(tmp_path, study, metrics))
    assert Page(written["report.html"].read_text()).open == []
    assert "<script>" not in written["report.html"].read_text()
    assert r"# A \<b> \| \*c\*" in written["report.md"].read_text()


def test_small_differences_get_a_second_decimal(tmp_path):
    study = make_study({"a": {}, "b": {}})
    metrics = {"a": (40.0, 41.0, 42.0), "b": (40.02, 41.03, 42.04)}
    table = table_of(write_report(write_study(tmp_path, study, metrics))["report.md"].read_text(), "AP of each arm")
    assert table["b"][r"difference to the baseline \[95 %\]"].startswith(r"+0.03 \[+0.01, ")
    assert table["b"]["AP, mean ± std"] == "41.0 ± 1.0"


def test_keys_are_as_short_as_they_are_unique(folder):
    study, runs = read_study_folder(folder)
    (result, *_) = compare_arms(study, runs)
    changes = {"A.B.NAME": (1, 2), "A.C.NAME": (1, 2), "A.GAMMA": (1, 2)}
    keys = [*changes, "A.D.NAME"]
    short = short_keys([replace(result, changes=changes)], keys)
    assert short == {"A.B.NAME": "B.NAME", "A.C.NAME": "C.NAME", "A.GAMMA": "GAMMA"}


def test_of_a_long_reason_begin_and_end_are_shown(folder):
    reason = "ended, its last lines: " + "Traceback " * 100 + "ValueError: the cause"
    write_run(folder, "hinge", 1, None, state="failed", reason=reason)
    written = write_report(folder, allow_missing=True)
    assert rows_of(written["runs.csv"])[10]["reason"] == reason
    (line,) = [line for line in written["report.md"].read_text().splitlines() if line.startswith("- hinge, seed 1")]
    assert len(line) < 320 and "ended, its last lines" in line and line.endswith("ValueError: the cause")


def test_the_axis_leaves_out_an_arm_far_off_and_the_ends_of_wide_intervals():
    low, high = zoom_limits([1.0, 44.0, 46.0, 50.0])
    assert 40 < low < 44 and 50 < high < 54
    assert zoom_limits([1.0, 44.0])[0] < 1.0  # two arms are both shown
    low, high = zoom_limits([44.0, 46.0, 48.0], [(-50.0, 140.0)])
    assert 40 < low < 44 and 48 < high < 52
    low, high = zoom_limits([0.0, 0.0], [(0.0, 0.0)])  # intervals of no width
    assert low <= -0.1 and high >= 0.1
    assert zoom_limits([None, 5.0])[0] < 5.0 < zoom_limits([5.0])[1]


def test_paths_below_the_working_directory_are_written_from_there(folder):
    study = replace(STUDY, base=Path.cwd() / "configs" / "base.yaml")
    write_study(folder, study, METRICS, GAMMAS)
    assert "- Base config: configs/base.yaml" in write_report(folder)["report.md"].read_text()
