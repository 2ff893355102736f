"""Mutated config files load, or end in a clean error that names the file: no error from inside, and no hang."""

import faulthandler

import pytest
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from retinanet_ext.config.loading import load_config

LEGAL_ERRORS = (ValueError, KeyError, TypeError, FileNotFoundError)
VALUES = (
    "2024-01-01", "2024-99-01", "null", "[]", "{}", "-1", "0", "1e400", ".nan", ".inf", "true", '"x"', "[1, [2]]",
    "&a [*a]", "!!binary aGk=", "!!set {a}", "!!python/object/apply:os.abort []", "1_000", "{1: 2}", "{a: b}",
    "9" * 400, "9" * 5000, "[null]", "\"(1,'\"", "<<", "? x", "[[[[[[]]]]]]", "(1, 2)", "1:30", "*unknown", '""',
    "[.nan]", "'1 if 0 else 2'", '"a\\0b"', f'"{"[" * 200}"', "[" * 1000, "2001-12-14t21:59:43.10-05:00", "0o777777",
)  # fmt: skip
BASES = (
    "5", "[5]", "{a: b}", "[[x]]", "null", "config.yaml", '"."', '"/"', '"~x"', "/dev/zero", '""', "true",
    "[config.yaml, quick/retinanet.yaml]", '"a\\0b"', "http://127.0.0.1:9/x.yaml", "2024-01-01",
)  # fmt: skip
CHARACTERS = "\x00\t{}[]&*!|>%@`\"'#-:, \ufeff\x85é\u2028"
HANGS_AFTER = 60  # seconds

mutation = st.one_of(
    st.tuples(st.just("value"), st.integers(0, 10**6), st.sampled_from(VALUES)),
    st.tuples(st.just("base"), st.integers(0, 10**6), st.sampled_from(BASES)),
    st.tuples(st.just("character"), st.integers(0, 10**6), st.sampled_from(CHARACTERS)),
    st.tuples(st.sampled_from(("delete", "repeat", "dedent", "join", "cut")), st.integers(0, 10**6), st.just("")),
)


def mutated(text: str, kind: str, place: int, what: str) -> str:
    lines = text.splitlines() or [""]
    row = place % len(lines)
    line = lines[row]
    match kind:
        case "value":
            lines[row] = f"{line.partition(':')[0]}: {what}"
        case "base":
            lines.insert(0, f"_BASE_: {what}")
        case "character":
            column = (place // len(lines)) % (len(line) + 1)
            lines[row] = line[:column] + what + line[column + place % 2 :]
        case "delete":
            del lines[row]
        case "repeat":
            lines.insert(row, line)
        case "dedent":
            lines[row] = line[1:]
        case "join":
            lines[row : row + 2] = ["".join(lines[row : row + 2])]
        case "cut":
            return text[: place % (len(text) + 1)]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def originals() -> list[str]:
    dump = load_config("quick/mask_retinanet.yaml", datasets=False).dump()
    short = {"MODEL": {"META_ARCHITECTURE": "FocalRetinaNet"}, "SOLVER": {"STEPS": [1, 2], "BASE_LR": 0.1}, "SEED": 1}
    return [dump, yaml.safe_dump(short)]


def test_mutated_configs_load_or_are_refused_by_name(originals, times, tmp_path):
    path = tmp_path / "config.yaml"

    @seed(0)
    @settings(max_examples=times(150), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(originals), st.lists(mutation, min_size=1, max_size=3))
    def check(text, mutations):
        for change in mutations:
            text = mutated(text, *change)
        path.write_text(text, errors="surrogatepass")
        faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
        try:
            load_config(str(path), datasets=False)
        except LEGAL_ERRORS as error:
            assert "config.yaml" in str(error), error
        finally:
            faulthandler.cancel_dump_traceback_later()

    check()
