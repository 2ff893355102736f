"""A report as a list of blocks, and its Markdown (its HTML: ``html_page.py``)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Warning:
    """A notice that precedes the results: a sentence, and the cases that it concerns."""

    text: str
    items: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Lines of (label, text)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells are text. `numbers`: indices of the columns that hold numbers; None: all but the first."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] | None = None

    @property
    def holds_numbers(self) -> list[bool]:
        numbers = range(1, len(self.header)) if self.numbers is None else self.numbers
        return [column in numbers for column in range(len(self.header))]


@dataclass(frozen=True)
class Command:
    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing of ``svg_plots.py``; `name` is the name of its file beside the Markdown."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Pictures:
    """Groups of small pictures. Each group: the pictures as JPEG files, and the lines of text below them."""

    items: Sequence[tuple[Sequence[bytes], Sequence[str]]]


Block = Heading | Paragraph | Warning | Facts | Bullets | Table | Command | Figure | Pictures


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    return "\n\n".join([f"# {_escape(title)}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {_escape(text)}"
        case Paragraph(text):
            return _escape(text)
        case Warning(text, items):
            return "\n".join([f"> **{_escape(text)}**", ">", *(f"> - {_escape(item)}" for item in items)])
        case Facts(items):
            return "\n".join(f"- {_escape(label)}: {_escape(text)}" for label, text in items)
        case Bullets(items):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Table(header, rows):
            rule = ["---:" if numbers else "---" for numbers in block.holds_numbers]
            return "\n".join("| " + " | ".join(row) + " |" for row in _table_rows(header, rule, rows))
        case Command(text):
            return f"```bash\n{text}\n```"
        case Figure(name, caption):
            return f"![{_escape(caption)}]({name})"
        case Pictures(items):
            return "\n".join(f"- {_escape('; '.join(lines))}" for _, lines in items)


def _table_rows(header, rule, rows):
    return [[_escape(cell) for cell in header], rule, *([_escape(cell) for cell in row] for row in rows)]


def _escape(text: str) -> str:
    """Escape markup characters, and join lines, because a line end would break a table."""
    return re.sub(r"([\\`*<|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
