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
    """A drawing of ``svg_plots.py``; `name` is the name of its file beside the Markdown.

    `wide`: keep its size and let the reader scroll, because it would be too small to read on a phone.
    """

    name: str
    caption: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Pictures:
    """Groups of pictures. Each group: the pictures as JPEG files, and the lines of text below them.

    `large`: two groups a row on a desktop, one on a phone, each picture as wide as there is room.
    """

    items: Sequence[tuple[Sequence[bytes], Sequence[str]]]
    large: bool = False


@dataclass(frozen=True)
class Subheading:
    """A heading within a section; not in the table of contents."""

    text: str


@dataclass(frozen=True)
class Headline:
    """The numbers that a reader should see first: (what, value, remark)."""

    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Contents:
    """The table of contents: texts of the headings below it."""

    items: Sequence[str]


@dataclass(frozen=True)
class Details:
    """Blocks that a page shows on a click only."""

    summary: str
    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Beside:
    """Blocks that stand beside each other if there is room, such as a figure and its table."""

    blocks: Sequence["Block"]


Block = (
    Heading | Paragraph | Warning | Facts | Bullets | Table | Command | Figure | Pictures
    | Subheading | Headline | Contents | Details | Beside
)  # fmt: skip


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
        case Subheading(text):
            return f"### {_escape(text)}"
        case Headline(items):
            return "\n".join(
                f"- {_escape(label)}: {_escape(value)} {_escape(note)}".rstrip() for label, value, note in items
            )
        case Contents(items):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Beside(blocks):
            return "\n\n".join(map(_markdown, blocks))
        case Details(summary, blocks):
            return "\n\n".join([f"### {_escape(summary)}", *map(_markdown, blocks)])


def _table_rows(header, rule, rows):
    return [[_escape(cell) for cell in header], rule, *([_escape(cell) for cell in row] for row in rows)]


def _escape(text: str) -> str:
    """Escape markup characters, and join lines, because a line end would break a table."""
    return re.sub(r"([\\`*<|\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))
