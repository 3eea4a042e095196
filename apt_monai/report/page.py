"""One self-contained HTML page: its frame, its banner, and the policy by which a browser lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from apt_monai import __version__

WARNING = "not a medical device, not for diagnosis or treatment."
"""What the banner of every report says first."""


def template(name: str) -> Template:
    """A file of this package as a template."""
    return Template(asset(name))


def asset(name: str) -> str:
    """The text of a file of this package.

    Example::

        >>> asset("viewer.js").splitlines()[2]
        '"use strict";'
    """
    return resources.files("apt_monai.report").joinpath(name).read_text(encoding="utf-8")


def page(title: str, banner: str, notice: str, body: str, data: Mapping[str, str] | None = None) -> str:
    """A whole page.

    Nothing outside it can be loaded, by its Content-Security-Policy: only its own style and script run, which the
    policy names by their hashes, and pictures are those inside it.

    Args:
        title: the page's, as plain text.
        banner: the first words of the banner that stays at the top, as plain text.
        notice: what follows them, as plain text.
        body: HTML.
        data: by its id, what the viewer reads: JSON or base64. Empty: the page has no viewer.

    Returns:
        HTML.

    Example::

        >>> "RESEARCH USE ONLY · SYNTHETIC" in page("a", "SYNTHETIC", WARNING, "<p>b</p>")
        True
    """
    style, script = asset("page.css"), asset("viewer.js") if data else ""
    policy = f"style-src '{_csp_hash(style)}'; script-src " + (f"'{_csp_hash(script)}'" if data else "'none'")
    blocks = [f'<script type="text/plain" id="{escape(key)}">{text}</script>\n' for key, text in (data or {}).items()]
    return template("page.html").substitute(
        title=escape(title),
        banner=escape(banner),
        notice=escape(notice),
        policy=policy,
        style=style,
        body=body,
        version=escape(__version__),
        scripts="".join(blocks) + (f"<script>{script}</script>\n" if data else ""),
    )


def json_block(value: Any) -> str:
    """JSON that can stand in a script element: no text in it can end that.

    Example::

        >>> json_block({"a": "</script>"})
        '{"a": "\\\\u003c/script>"}'
    """
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def table(rows: Iterable[Sequence[str]], heading: Sequence[str] = (), numbers_from: int | None = None) -> str:
    """A table of plain texts as HTML, each row's first cell its heading.

    Args:
        rows: the cells.
        heading: those of the first line.
        numbers_from: the column from which on cells are numbers, aligned on the right; None: none are.

    Example::

        >>> table([("a", "<b>")])
        '<div class="scroll"><table><tr><th scope="row">a</th><td>&lt;b&gt;</td></tr></table></div>'
    """

    def cell(tag: str, column: int, text: str, more: str = "") -> str:
        right = ' class="number"' if numbers_from is not None and column >= numbers_from else ""
        return f"<{tag}{more}{right}>{escape(text)}</{tag}>"

    lines = []
    if heading:
        cells = (cell("th", column, text, ' scope="col"') for column, text in enumerate(heading))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    for first, *others in rows:
        cells = (cell("td", column, text) for column, text in enumerate(others, start=1))
        name = cell("th", 0, first, ' scope="row"')
        lines.append(f"<tr>{name}{''.join(cells)}</tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def picture(path: str | Path, text: str) -> str:
    """A PNG file inside the page.

    Args:
        path: the file.
        text: what those are told who cannot see it.
    """
    data = base64.b64encode(Path(path).read_bytes()).decode()
    return f'<img class="figure" src="data:image/png;base64,{data}" alt="{escape(text)}">'


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
