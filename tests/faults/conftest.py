"""Fault tests run a short form in the suite; RETINANET_EXT_FAULT_TIMES=N runs each fault N times."""

import os

import pytest


@pytest.fixture
def times():
    """How often to inject a fault: the test's own number, or RETINANET_EXT_FAULT_TIMES."""
    return lambda default: int(os.environ.get("RETINANET_EXT_FAULT_TIMES", default))
