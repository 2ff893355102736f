"""A report as one self-contained HTML page, for light and dark mode, for desktop and phone."""

import base64
import re
from collections.abc import Sequence
from html import escape

from .document import (
    Beside,
    Block,
    Bullets,
    Command,
    Contents,
    Details,
    Facts,
    Figure,
    Heading,
    Headline,
    Paragraph,
    Pictures,
    Subheading,
    Table,
    Warning,
)
from .svg_plots import for_page

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --raised: #f5f7f9; --line: #d5dae0; --ink: #1f2328;
  --soft: #59636e; --quiet: #9aa1a9; --ours: #0b65c2; --paper: #b8500b; --warn: #fff4d6; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --raised: #1c2229; --line: #39424d; --ink: #e6e9ed;
  --soft: #a3adb8; --quiet: #78828d; --ours: #6cb2ff; --paper: #ffa35c; --warn: #3a2f10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 74rem; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p, ul, dl { max-width: 62rem; }
ul { padding-left: 1.2rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; min-width: 0; }
aside { background: var(--warn); border-left: 4px solid var(--paper); padding: .6rem 1rem; margin: 1rem 0; }
aside p { margin: 0; font-weight: 600; } aside ul { margin: .3rem 0 0; }
pre { background: var(--raised); border: 1px solid var(--line); border-radius: 6px; padding: .7rem 1rem;
  overflow-x: auto; white-space: pre-wrap; }
.scroll { overflow-x: auto; }
.scroll, .pictures, .figures { margin-bottom: 1.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { min-width: 4em; }
td.text { min-width: 11em; max-width: 24em; } td.text:last-child { min-width: 15em; }
td.number, th.number { text-align: right; } .beside th.number { min-width: 5.5em; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--ground); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem;
  align-items: start; margin: 1rem 0; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .3rem; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 2rem; align-items: flex-start; margin: .6rem 0; }
.beside > div { flex: 1 1 min(100%, 24rem); min-width: 0; max-width: 36rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: 1rem; }
.pictures > div { background: var(--raised); border: 1px solid var(--line); border-radius: 6px; padding: .6rem;
  min-width: 0; font-size: .85rem; }
.pictures .row { display: flex; gap: .4rem; } .pictures p { margin: .2rem 0 0; color: var(--soft); }
.pictures img { min-width: 0; flex: 1 1 0; height: 7rem; object-fit: contain; }
figure svg { display: block; width: 100%; max-width: 36rem; height: auto; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
a { color: var(--ours); }
nav ul { columns: 14rem; list-style: none; padding: 0; margin: .5rem 0; } nav li { break-inside: avoid; }
.headline { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1rem 0; }
.headline > div { flex: 1 1 10rem; max-width: 20rem; background: var(--raised); border: 1px solid var(--line);
  border-radius: 6px; padding: .6rem .9rem; }
.headline b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.headline span, .headline i { display: block; color: var(--soft); font-size: .85rem; font-style: normal; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--ours); }
.pictures.large { grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
.pictures.large img { height: auto; max-height: 26rem; }
@media (max-width: 40rem) { .pictures.large .row { flex-direction: column; } .pictures.large img { max-height: none; } }
figure.wide { grid-column: 1 / -1; min-width: 0; } figure.wide svg { max-width: none; }
@media (max-width: 40rem) { body { font-size: 14px; } dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; } th:first-child, td:first-child { min-width: 7em; max-width: 9em;
  border-right: 1px solid var(--line); } }
"""


# Spaces within a number cell, which must not break the line; and places within a name where a line may break.
_NO_BREAK = re.compile(r"(?<=±) | (?=±)|(?<=to) | (?=to\b)|(?<=,) (?=[+-])| (?=min\b|h\b)")
_MAY_BREAK = re.compile(r"([_.])(?=[A-Za-z]{2})")


def to_html(title: str, blocks: Sequence[Block]) -> str:
    body = _body(blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _body(blocks: Sequence[Block]) -> str:
    parts, figures = [], []
    for block in [*blocks, None]:
        if isinstance(block, Figure):
            figures.append(_html(block))
            continue
        if figures:  # consecutive figures stand side by side if there is room
            parts.append(f'<div class="figures">{"".join(figures)}</div>')
            figures = []
        if block is not None:
            parts.append(_html(block))
    return "\n".join(parts)


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f'<h2 id="{_anchor(text)}">{escape(text)}</h2>'
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Warning(text, items):
            return f"<aside><p>{escape(text)}</p>{_list(items)}</aside>"
        case Facts(items):
            return f"<dl>{''.join(f'<dt>{escape(label)}</dt><dd>{escape(text)}</dd>' for label, text in items)}</dl>"
        case Bullets(items):
            return _list(items)
        case Table():
            return _table(block)
        case Command(text):
            return f"<pre>{escape(text)}</pre>"
        case Figure(_, caption, svg, wide):
            return _figure(caption, for_page(svg), wide)
        case Pictures(items, large):
            kind = "pictures large" if large else "pictures"
            return f'<div class="{kind}">{"".join(_picture_group(*item) for item in items)}</div>'
        case Subheading(text):
            return f"<h3>{escape(text)}</h3>"
        case Headline(items):
            return f'<div class="headline">{"".join(_headline_item(*item) for item in items)}</div>'
        case Contents(items):
            links = "".join(f'<li><a href="#{_anchor(item)}">{escape(item)}</a></li>' for item in items)
            return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'
        case Beside(blocks):
            return f'<div class="beside">{"".join(f"<div>{_html(block)}</div>" for block in blocks)}</div>'
        case Details(summary, blocks):
            return f"<details><summary>{escape(summary)}</summary>{_body(blocks)}</details>"


def _figure(caption: str, drawing: str, wide: bool) -> str:
    width = re.search(r'width="([\d.]+pt)"', drawing)
    size = f' style="width: {width[1]}"' if wide and width else ""
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"{size}', 1)
    drawing = f'<div class="scroll">{drawing}</div>' if wide else drawing
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}><figcaption>{escape(caption)}</figcaption>{drawing}</figure>"


def _anchor(heading: str) -> str:
    """The id of a heading; the prefix keeps it apart from the ids within drawings."""
    return "section-" + re.sub(r"\W+", "-", heading.lower()).strip("-")


def _headline_item(label: str, value: str, note: str) -> str:
    return f"<div><span>{escape(label)}</span><b>{escape(value)}</b><i>{escape(note)}</i></div>"


def _picture_group(pictures: Sequence[bytes], lines: Sequence[str]) -> str:
    alternative = escape(", ".join(lines), quote=True)
    data = [base64.b64encode(picture).decode() for picture in pictures]
    images = "".join(f'<img alt="{alternative}" src="data:image/jpeg;base64,{content}">' for content in data)
    texts = "".join(f"<p>{_cell(line, 'text')}</p>" for line in lines)
    return f'<div><div class="row">{images}</div>{texts}</div>'


def _list(items):
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _table(table: Table) -> str:
    kinds = ["number" if numbers else "text" for numbers in table.holds_numbers]

    def row(tag, cells):
        inner = "".join(f"<{tag} class={kind}>{_cell(cell, kind)}</{tag}>" for kind, cell in zip(kinds, cells))
        return f"<tr>{inner}</tr>"

    body = "".join(row("td", cells) for cells in table.rows)
    return f'<div class="scroll"><table><thead>{row("th", table.header)}</thead><tbody>{body}</tbody></table></div>'


def _cell(text: str, kind: str) -> str:
    """Numbers stay on one line; names may break after an underscore or a dot."""
    if kind == "number":
        return _NO_BREAK.sub("\u00a0", escape(text))
    return _MAY_BREAK.sub(r"\1<wbr>", escape(text))
