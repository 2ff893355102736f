"""``train_net.py`` with pauses, so that a test can hit a moment: ``python -m tests.faults.slow_run FLAGS``.

``SLOW`` is a part and the seconds that it takes longer: ``data 5`` (the check of the data), ``evaluation 0.2`` (each
image of an evaluation) or ``step 0.1`` (each training step).
"""

import argparse
import os
import sys
import time

from retinanet_ext.training.arguments import add_train_arguments
from retinanet_ext.training.command import run_command

PART, SECONDS = os.environ.get("SLOW", "none 0").split()


def slow_down() -> None:
    """Make the part wait that the test wants to hit."""
    from retinanet_ext.data import checked_records
    from retinanet_ext.training.step import TrainStep
    from retinanet_ext.training.stop_hook import StoppableLoader

    patches = {
        "data": (checked_records, "_checked_dataset"),
        "evaluation": (StoppableLoader, "__iter__"),
        "step": (TrainStep, "run_step"),
    }
    owner, name = patches[PART]
    original = getattr(owner, name)

    def slow(*args, **kwargs):
        if PART == "evaluation":
            return _slow_batches(original(*args))
        print(f"SLOW {PART}", flush=True)
        deadline = time.monotonic() + float(SECONDS)
        while time.monotonic() < deadline:  # in Python, as the checks themselves are
            time.sleep(0.01)
        return original(*args, **kwargs)

    setattr(owner, name, slow)


def _slow_batches(batches):
    for batch in batches:
        print("SLOW evaluation", flush=True)
        time.sleep(float(SECONDS))
        yield batch


if __name__ in ("__main__", "__mp_main__") and PART != "none":
    slow_down()  # in the processes that a launcher starts, too
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    sys.exit(run_command(parser.parse_args()))
