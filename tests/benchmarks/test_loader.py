"""The benchmark of the loader times engines that give the same samples, and refuses to time others."""

import pytest

from benchmarks.loader import ENGINES, available_engines, format_rates, measure, open_workers, parse_arguments


@pytest.fixture(scope="module")
def settings():
    return parse_arguments(["--images=4", "--size=64", "--repeats=1", "--threads=1", "--workers", "0", "1"])


@pytest.fixture(scope="module")
def workers(settings):
    with open_workers(available_engines(), settings) as workers:
        yield workers


def test_tables_have_a_row_for_each_engine(workers, settings):
    tables = measure(workers, settings)
    assert list(tables) == ["decode", "resize and flip", "whole mapper", "loader, 0 workers", "loader, 1 worker"]
    names = [ENGINES[engine] for engine in available_engines()]
    for cases in tables.values():
        assert [case.name for case in cases] == names
        assert all(len(case.seconds) == 1 and case.seconds[0] > 0 for case in cases)
    assert all(f"| {name} |" in format_rates(tables) for name in names)


def test_other_samples_are_not_timed(workers, settings):
    class Wrong:
        def ask(self, method, *args):
            found = next(iter(workers.values())).ask(method, *args)
            assert method == "fingerprints"
            identity, shape, pixels, boxes, classes = found[1][2]
            found[1][2] = identity, shape, pixels + 1, boxes, classes
            return found

    with pytest.raises(RuntimeError, match=r"samples of wrong differ from those of .*: image ids \[2\]"):
        measure({"wrong": Wrong(), **workers}, settings)
