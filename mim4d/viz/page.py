"""Pieces of an HTML page: escaping, numbers in words, tables, the document around them."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mim4d.viz.stylesheet import STYLE

MINUS = "\u2212"
NOTHING = "\u2013"  # stands where a value is empty


def text(value: object) -> str:
    """Any value as text that is safe inside an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def number(value: float, digits: int, unit: str = "") -> str:
    """``<data>`` with the exact value for machines and ``digits`` decimals for readers; "no number" when it is none."""
    if not math.isfinite(value):
        return '<data value="">no number</data>'
    shown = f"{value:.{digits}f}".replace("-", MINUS)
    return f'<data value="{value!r}">{shown}{"&nbsp;" + text(unit) if unit else ""}</data>'


def change(before: float, after: float) -> str:
    """Relative change in words: ``−67 %``; empty where there is none to state."""
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0:
        return ""
    percent = 100 * (after - before) / before
    sign = MINUS if percent < 0 else "+"
    return f"{sign}{abs(percent):.0f}&nbsp;%"


def duration(seconds: float) -> str:
    """``201.4`` -> ``3 min 21 s``."""
    if not math.isfinite(seconds):
        return "an unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def image(uri: str, alt: str, *, pixels: bool = False) -> str:
    """An ``<img>`` with its alternative text; ``pixels`` keeps pixels sharp when it is enlarged."""
    kind = ' class="pixels"' if pixels else ""
    return f'<img{kind} src="{uri}" alt="{text(alt)}">'


def vector(svg: str, alt: str) -> str:
    """An inline SVG with its alternative text."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{text(alt)}"', 1)


def figure(body: str, title: str, note: str = "") -> str:
    """A picture with its title above and a note below; ``title`` and ``note`` are plain text."""
    below = f'<p class="note">{text(note)}</p>' if note else ""
    return f"<figure><figcaption>{text(title)}</figcaption>{body}{below}</figure>"


def how_to_read(body: str) -> str:
    """The box that says how a picture is to be read; ``body`` is HTML."""
    return f'<aside class="read"><strong>How to read this</strong> {body}</aside>'


def section(anchor: str, title: str, *parts: str) -> str:
    """A part of the page; ``title`` is plain text, ``parts`` are HTML."""
    return f'<section id="{text(anchor)}"><h2>{text(title)}</h2>{"".join(parts)}</section>'


def facts(content: Mapping[str, Any], title: str, absent: Callable[[str], str]) -> str:
    """A nested mapping as tables: plain entries in one, every nested mapping in one of its own. All text is escaped.

    ``absent`` gives the word that stands for None in the table of a top-level key.
    """
    plain = {key: value for key, value in content.items() if not (isinstance(value, Mapping) and value)}
    nested = {key: value for key, value in content.items() if isinstance(value, Mapping) and value}
    flat = {key: value for key, value in nested.items() if not any(isinstance(v, Mapping) for v in value.values())}
    tables = []
    if plain:
        tables.append(_table(plain.items(), title, NOTHING))
    tables += [_table(value.items(), _plain(key), absent(key)) for key, value in flat.items()]
    tables += [_matrix(value, _plain(key), absent(key)) for key, value in nested.items() if key not in flat]
    return f'<div class="facts">{"".join(tables)}</div>'


def _plain(key: object) -> str:
    words = str(key).replace("_", " ")
    return words[:1].upper() + words[1:]


def _table(rows: Iterable[tuple[object, object]], title: str, absent: str) -> str:
    body = "".join(f'<tr><th scope="row">{text(key)}</th><td>{_value(value, absent)}</td></tr>' for key, value in rows)
    return f"<table><caption>{text(title)}</caption><tbody>{body}</tbody></table>"


def _matrix(content: Mapping[str, Any], title: str, absent: str) -> str:
    """A mapping of mappings, one row per entry, the inner entries in a line."""
    cells = {
        key: _lines(value, absent) if isinstance(value, Mapping) else _value(value, absent)
        for key, value in content.items()
    }
    body = "".join(f'<tr><th scope="row">{text(key)}</th><td>{cell}</td></tr>' for key, cell in cells.items())
    return f'<table class="wide"><caption>{text(title)}</caption><tbody>{body}</tbody></table>'


def _lines(content: Mapping[str, Any], absent: str) -> str:
    return " ".join(
        f'<span class="pair"><span class="key">{text(key)}</span> {_value(value, absent)}</span>'
        for key, value in content.items()
    )


def _value(value: object, absent: str) -> str:
    if value is None:
        return f'<span class="none">{text(absent)}</span>'
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "; ".join(f"{text(key)}: {_value(entry, absent)}" for key, entry in value.items()) or NOTHING
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(entry, absent) for entry in value) or NOTHING
    if isinstance(value, str) and "\n" in value:
        return f"<pre>{text(value)}</pre>"
    return text(value)


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """The whole page. Its security policy lets a browser load nothing but what stands in the file itself."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
