"""One HTML page that holds its pictures: no script, no style from elsewhere, readable on paper."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

GENERATOR = "tomoscale report"
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #1d2129;
       background: #fff; margin: 0 auto; padding: 2.2rem 1.5rem 4rem; max-width: 62rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid #d5d9e0; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
p { margin: .4rem 0; max-width: 48rem; }
.lead { color: #4a5160; margin-bottom: 1.2rem; }
.note { border-left: 3px solid #c8541b; padding: .3rem .9rem; background: #fbf3ee; }
figure { margin: .8rem 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: #4a5160; font-size: .92rem; max-width: 48rem; margin-top: .3rem; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; }
th, td { text-align: left; padding: .22rem 1.1rem .22rem 0; vertical-align: top; border-bottom: 1px solid #e6e9ee; }
th { font-weight: 600; color: #4a5160; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
.wide { overflow-x: auto; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .1rem 1.4rem; margin: .4rem 0;
     font-size: .9rem; }
dl div { display: flex; justify-content: space-between; gap: .8rem; padding: .12rem 0;
         border-bottom: 1px solid #e6e9ee; }
dt { color: #4a5160; } dd { margin: 0; overflow-wrap: anywhere; text-align: right; }
.figures { display: flex; flex-wrap: wrap; gap: .3rem 2.2rem; padding: 0; margin: 1rem 0; list-style: none; }
.figures b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.figures span { color: #4a5160; font-size: .85rem; }
footer { margin-top: 3rem; color: #6a7180; font-size: .85rem; }
@media print {
  @page { margin: 1.5cm; }
  body { font-size: 10pt; padding: 0; max-width: none; }
  h2 { margin-top: 1.2rem; }
  h2, h3, h2 + p, h3 + p { break-after: avoid; }
  figure, table, dl { break-inside: avoid; }
  figure img { width: auto; max-height: 14cm; }
  table, dl { font-size: 8pt; }
  th, td { padding-right: .7rem; }
  .wide { overflow: visible; }
  .note { background: none; }
}
"""


@dataclass(frozen=True)
class Picture:
    """
    A picture of the page, which is also a file beside it.

    Parameters
    ----------
    name : str
        File name without `.png`.
    png : bytes
        The file.
    alternative : str
        What it shows, for those who do not see it.
    caption : str
        How to read it.
    """

    name: str
    png: bytes
    alternative: str
    caption: str


@dataclass
class Section:
    """A heading with text, pictures and tables below it; `notes` stand out."""

    title: str
    text: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


@dataclass(frozen=True)
class Table:
    """Rows of words; the first cell of each is its heading where there is no head."""

    rows: Sequence[Sequence[str]]
    head: Sequence[str] = ()
    title: str = ""
    text: str = ""
    choices: Sequence[tuple[str, str]] = ()
    """Names and values set side by side above the rows: the parameters of a step."""


def html(
    title: str, lead: str, figures: Iterable[tuple[str, str]], sections: Iterable[Section], foot: str
) -> str:
    """
    Return the page.

    Parameters
    ----------
    title : str
        Name of the result.
    lead : str
        What it is, in a sentence.
    figures : iterable of (str, str)
        Key figures: value and what it is.
    sections : iterable of Section
        What follows.
    foot : str
        Last line.

    Returns
    -------
    str
        HTML that refers to nothing outside itself.
    """
    shown = "".join(f"<li><b>{escape(v)}</b><span>{escape(n)}</span></li>" for v, n in figures)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="generator" content="{GENERATOR}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n<ul class="figures">{shown}</ul>\n'
        + "".join(_section(s) for s in sections)
        + f"<footer>{escape(foot)}</footer>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(t)}</p>" for t in section.text]
    parts += [f'<p class="note">{escape(t)}</p>' for t in section.notes]
    parts += [_picture(p) for p in section.pictures]
    parts += [_table(t) for t in section.tables]
    return "\n".join(parts) + "\n"


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    # Three dots of the file for two of the page, so that it is sharp on paper and on fine screens.
    width = int.from_bytes(picture.png[16:20], "big") * 2 // 3
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{escape(picture.alternative)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    parts = [f"<h3>{escape(table.title)}</h3>"] if table.title else []
    if table.text:
        parts.append(f"<p>{escape(table.text)}</p>")
    if table.choices:
        pairs = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in table.choices)
        parts.append(f"<dl>{pairs}</dl>")
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in table.head)
    rows = []
    for first, *others in table.rows:
        cell = f"<td>{escape(first)}</td>" if table.head else f'<th scope="row">{escape(first)}</th>'
        rows.append(f"<tr>{cell}{''.join(f'<td>{escape(c)}</td>' for c in others)}</tr>")
    body = f"<table>{f'<tr>{head}</tr>' if head else ''}{''.join(rows)}</table>"
    return "\n".join([*parts, f'<div class="wide">{body}</div>' if rows else ""])
