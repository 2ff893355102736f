"""The tables of a report as LaTeX: plain ``tabular``, without packages."""

import re
from collections.abc import Sequence

from .document import Block, Heading, Table

_SYMBOLS = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "±": r"$\pm$", "–": "--", "…": r"\ldots{}", "×": r"$\times$", "≥": r"$\geq$",
    # After a line's end, LaTeX would take a bracket for the argument of the line end.
    "[": "{[}", "]": "{]}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w.)-])-(?=\d)")


def to_latex(title: str, blocks: Sequence[Block]) -> str:
    """A ``table`` with caption for each table of the report; the nearest heading above it is the caption."""
    parts, caption = [f"% {_one_line(title)}"], title
    for block in blocks:
        if isinstance(block, Heading):
            caption = block.text
        elif isinstance(block, Table):
            parts.append(_table(block, caption))
    return "\n\n".join(parts) + "\n"


def escape(text: str, is_number: bool = False) -> str:
    """Text as LaTeX prints it literally. In numbers, a hyphen before a digit becomes a minus sign."""
    parts = [text]
    if is_number:
        parts = _MINUS.split(text)
    escaped = ["".join(_SYMBOLS.get(character, character) for character in _one_line(part)) for part in parts]
    return "$-$".join(escaped)


def _one_line(text):
    return re.sub(r"\s+", " ", text)


def _table(table: Table, caption: str) -> str:
    numbers = table.holds_numbers
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(caption)}}}"]
    lines += [rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}", r"\hline"]
    lines += [_row(table.header, [False] * len(numbers)), r"\hline"]
    lines += [_row(row, numbers) for row in table.rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", r"\end{table}"])


def _row(cells, numbers):
    return " & ".join(escape(cell, number) for cell, number in zip(cells, numbers, strict=True)) + r" \\"
