"""Checks what a YAML file may hold: sections with names, lists, text, numbers, true, false and null. No engine."""

from typing import Any

_SCALARS = (str, bool, int, float, type(None))
_MAX_DEPTH = 32
# An alias costs a file few characters, and may stand for a list of aliases: a short file may hold a billion values.
_MAX_VALUES = 1_000_000


def check_plain(loaded: dict, filename: str) -> None:
    """Refuse values that no key can take.

    Args:
        loaded: what YAML made of the file.
        filename: for messages.

    Raises:
        ValueError: a value of another type (a date, a set, bytes), a key that is no text, a value that contains itself,
            nesting beyond 32 levels, or more than a million values.
    """
    count = 0
    pending: list[tuple[str, Any, tuple[int, ...]]] = [("", loaded, ())]
    while pending:
        name, value, parents = pending.pop()
        count += 1
        if count > _MAX_VALUES:
            raise ValueError(f"{filename} holds more than {_MAX_VALUES:,} values; are its aliases (*name) as intended?")
        if isinstance(value, _SCALARS):
            continue
        if not isinstance(value, (dict, list, tuple)):
            raise ValueError(
                f"{filename}: {name or 'the file'} is of the type {type(value).__name__}; legal: text (put it in "
                "quotes), numbers, true, false, null, lists, sections"
            )
        if id(value) in parents:
            raise ValueError(f"{filename}: {name} contains itself, by an alias (*name) inside of its anchor (&name)")
        if len(parents) >= _MAX_DEPTH:
            raise ValueError(f"{filename}: {name[:80]}... is nested more than {_MAX_DEPTH} levels deep")
        pending += [(inner, item, (*parents, id(value))) for inner, item in _children(name, value, filename)]


def _children(name: str, value: dict | list | tuple, filename: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    # An integer is no name of a key either, which the search for unknown keys says better.
    wrong = [key for key in value if not isinstance(key, (str, int))]
    if wrong:
        where = f"in {name}" if name else "at the top"
        raise ValueError(
            f"{filename}: the key {wrong[0]!r} {where} is of the type {type(wrong[0]).__name__}; legal: names such as "
            "SOLVER"
        )
    return [(f"{name}.{key}" if name else key, item) for key, item in value.items()]
