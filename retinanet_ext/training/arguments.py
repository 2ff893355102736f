"""The flags of a training run. Independent of the engine, and of torch."""

import argparse
import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a training run: ``--time-limit``, ``--strict`` and those of Detectron2."""
    parser.add_argument(
        "--time-limit",
        type=seconds_of,
        metavar="TIME",
        help="save and exit with code 75 within this time: 2h30m, 90m, seconds, or D-HH:MM:SS as SLURM writes it",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse keys of the config that nothing in the run reads, not only warn"
    )
    add_engine_arguments(parser)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Detectron2's ``train_net.py``, followed by ``KEY VALUE`` overrides, in ``opts``."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML config")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine, one per GPU (or on CPU)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in the job")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://ADDRESS:PORT of machine 0; auto: a free port of this machine",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="pairs that override keys of the config"
    )


def seconds_of(text: str) -> float:
    """Seconds of a time such as ``5400``, ``90m``, ``1h30m``, ``1:30:00`` (or ``90:00``) and ``1-12:00:00``.

    Raises:
        argparse.ArgumentTypeError: ``text`` is no such time, or not above zero.
    """
    seconds = _seconds(text.strip().lower())
    if not seconds:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time above zero; legal: seconds (5400), units (1h30m, 90m), D-HH:MM:SS, HH:MM:SS, MM:SS"
        )
    return seconds


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", text):
        return float(sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([dhms])", text)))
    # SLURM writes days only before hours, and hours only before minutes.
    clock = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if clock is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
    return float(days * 86400 + hours * 3600 + minutes * 60 + seconds)
