import argparse

import pytest

from benchmarks.scaling import FACTORS, parse_arguments, vary


@pytest.mark.parametrize("factor", FACTORS)
def test_one_thing_is_varied_at_a_time(factor):
    settings = parse_arguments(["--height=64", "--width=96"])
    for value in FACTORS[factor]:
        changed = {name for name, found in vars(vary(settings, factor, value)).items() if found != vars(settings)[name]}
        assert changed <= ({"height", "width"} if factor == "pixels" else {factor})
    assert isinstance(settings, argparse.Namespace) and settings.height == 64
