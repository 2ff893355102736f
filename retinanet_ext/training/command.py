"""``train_net.py`` and ``retinanet-ext train``: exit codes, and one message for every error.

0: finished. 1: an error. 2: wrong usage, config or data. 75: stopped early, everything saved. 130: a second SIGINT.

Only light modules are imported here before signals are handled: importing torch takes seconds.
"""

import sys
import time
import traceback
from argparse import Namespace

from . import run_errors, stops


def run_command(args: Namespace) -> int:
    """Train or evaluate as the flags say; returns the exit code. Errors become one message on standard error.

    The traceback is in the log of the run; ``RETINANET_EXT_TRACEBACK=1`` shows it on the screen too.

    Args:
        args: the flags of :func:`retinanet_ext.training.arguments.add_train_arguments`.
    """
    limit = getattr(args, "time_limit", None)
    run_errors.on_command_line()
    try:
        with stops.handled_signals(None if limit is None else time.monotonic() + limit):
            args.deadline = stops.deadline()
            from .launch import launch, main

            launch(main, args, handle_stops=True)
            return 0
    except stops.StopRequested as stop:
        if not getattr(stop, "silent", False):
            _say(stop.message or _nothing_to_save(stop.reason, args))
        return stops.STOPPED_EARLY
    except KeyboardInterrupt:
        _say("aborted by a second SIGINT: what was not saved before is lost")
        return stops.ABORTED
    except Exception as error:
        if run_errors.shows_tracebacks():
            traceback.print_exc()
        text, code = run_errors.describe(error)
        if not getattr(error, "silent", False):
            _say(f"error: {text}")
        return code
    finally:
        stops.kill_workers()


def _nothing_to_save(reason: str, args: Namespace) -> str:
    if args.eval_only:
        return f"stopped by {reason} before the evaluation was done: nothing is saved. Run the same command again."
    again = "; it goes on from the last checkpoint" if args.resume else ""
    return f"stopped by {reason} before the first iteration: nothing had to be saved. Run the command again{again}."


def _say(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
