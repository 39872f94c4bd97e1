"""Small pieces of HTML that a report is made of; all text from outside is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

import numpy as np
from jaxtyping import Float

from cryofire.analysis.map_pictures import jpeg_bytes
from cryofire.analysis.run_record import Verdict
from cryofire.analysis.surface import Colour

_SIGNS = {"good": ("✓", "Good"), "caution": ("!", "Caution"), "bad": ("✗", "Problem")}


def page(title: str, sections: Iterable[str]) -> str:
    """Return a whole, self-contained HTML page.

    Parameters
    ----------
    title : str
        Plain text.
    sections : iterable of str
        HTML, in order.
    """
    template = Template(files("cryofire.analysis").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(sections))


def section(anchor: str, title: str, *parts: str, kind: str = "") -> str:
    """Return a titled section; empty parts are left out.

    Parameters
    ----------
    anchor : str
        Its id on the page.
    title : str
        Plain text.
    parts : str
        HTML.
    kind : str
        Further CSS class.
    """
    body = "\n".join(part for part in parts if part)
    return f'<section id="{anchor}" class="{kind}"><h2>{escape(title)}</h2>\n{body}</section>'


def paragraph(text: str, kind: str = "") -> str:
    """Return plain text as a paragraph.

    Parameters
    ----------
    text : str
        Plain text.
    kind : str
        CSS class, for example "soft".
    """
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def tile(value: str, what: str) -> str:
    """Return a key figure and what it is.

    Parameters
    ----------
    value, what : str
        Plain text.
    """
    return f'<div class="tile"><div class="value">{escape(value)}</div><div class="what">{escape(what)}</div></div>'


def verdict(judged: Verdict) -> str:
    """Return one verdict with its sign; the level is also said in words, for readers who do not see colours.

    Parameters
    ----------
    judged : Verdict
        Unknown levels count as caution.
    """
    level = judged.level if judged.level in _SIGNS else "caution"
    sign, word = _SIGNS[level]
    return (
        f'<div class="verdict {level}"><div class="sign" role="img" aria-label="{word}">{sign}</div>'
        f"<div><b>{escape(judged.topic)}</b>{escape(judged.text)}</div></div>"
    )


def picture(pixels: Float[np.ndarray, "row column 3"], description: str) -> str:
    """Return a picture as an image element that carries its own data.

    Parameters
    ----------
    pixels : array
        Values 0 … 1.
    description : str
        What it shows, for readers who cannot see it.
    """
    data = base64.b64encode(jpeg_bytes(pixels)).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(description)}">'


def plot(svg: str | None, description: str, caption: str) -> str:
    """Return a plot with its caption, or nothing where there is no plot.

    Parameters
    ----------
    svg : str or None
        SVG text.
    description : str
        What the axes show.
    caption : str
        How to read it.
    """
    if svg is None:
        return ""
    data = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return figure(f'<img src="data:image/svg+xml;base64,{data}" alt="{escape(description)}">', caption)


def figure(content: str, caption: str = "", kind: str = "") -> str:
    """Return HTML as a figure with a caption.

    Parameters
    ----------
    content : str
        HTML.
    caption : str
        Plain text.
    kind : str
        CSS class.
    """
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{content}{words}</figure>'


def grid(parts: Iterable[str], kind: str = "grid") -> str:
    """Return parts side by side, as many as fit; nothing where there are none.

    Parameters
    ----------
    parts : iterable of str
        HTML.
    kind : str
        CSS class of the grid: "grid", "three", "strip" or "eight".
    """
    body = "\n".join(part for part in parts if part)
    return f'<div class="{kind}">{body}</div>' if body else ""


def swatch(colour: Colour) -> str:
    """Return a small square of a colour.

    Parameters
    ----------
    colour : tuple
        Red, green, blue, 0 … 1.
    """
    red, green, blue = (round(255 * one) for one in colour)
    return f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Return a table; cells are HTML, headings plain text.

    Parameters
    ----------
    head : sequence of str
        Headings.
    rows : iterable
        Cells of each row.
    numbers : sequence of int
        Columns aligned to the right.
    """
    kinds = ["number" if index in numbers else "" for index in range(len(head))]
    top = "".join(f'<th class="{kind}">{escape(name)}</th>' for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


def commands(*lines: str) -> str:
    """Return lines to be typed, as a block.

    Parameters
    ----------
    lines : str
        Plain text.
    """
    return "<pre>" + escape("\n".join(lines)) + "</pre>"


def duration(seconds: float) -> str:
    """Return a time for people: "41 s", "4 min 24 s", "2 h 5 min".

    Parameters
    ----------
    seconds : float
        Any non-negative time.
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def data_size(amount: float) -> str:
    """Return a number of bytes for people, in steps of 1000: "3.1 MB".

    Parameters
    ----------
    amount : float
        Bytes.
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000 or unit == "GB":
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return ""


def count(number: int) -> str:
    """Return a whole number with thin spaces between thousands.

    Parameters
    ----------
    number : int
        Any whole number.
    """
    return f"{number:,}".replace(",", "\u202f")
