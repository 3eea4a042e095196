"""The tables of an evaluation as HTML."""

from __future__ import annotations

from html import escape

from apt_monai.report.page import table


def markdown_to_html(text: str) -> str:
    """What :func:`apt_monai.evaluation.tables.tables` writes, as HTML: ``###`` headings, tables and paragraphs.

    Args:
        text: Markdown with these three alone.

    Example::

        >>> print(markdown_to_html("### Brain\\n\\n| given | T1 |\\n| --- | --- |\\n| T2 | 31 |\\n\\nTwo subjects."))
        <h3>Brain</h3>
        <div class="scroll"><table><tr><th scope="col">given</th><th scope="col">T1</th></tr><tr><th scope="row">T2</th><td>31</td></tr></table></div>
        <p>Two subjects.</p>
    """  # noqa: E501
    parts = []
    for block in text.strip().split("\n\n"):
        lines = block.splitlines()
        if block.startswith("### "):
            parts.append(f"<h3>{escape(block[4:])}</h3>")
        elif block.startswith("|"):
            heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
            parts.append(table(rows, heading))
        else:
            parts.append(f"<p>{escape(' '.join(lines))}</p>")
    return "\n".join(parts)
