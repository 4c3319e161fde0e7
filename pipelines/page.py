"""Pieces of HTML that the parts of the report share."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any


def image_html(png: bytes, alt: str) -> str:
    """A picture within the page."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def pairs_html(pairs: Iterable[tuple[str, Any]]) -> str:
    """A table of names and values."""
    return rows_html(
        [],
        [
            [
                html.escape(str(key).replace("_", " ")),
                f"{value:.4g}" if isinstance(value, float) else html.escape(str(value)),
            ]
            for key, value in pairs
        ],
    )


def rows_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells of HTML, which scrolls sideways where it is wider than the page."""
    top = "<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>" if head else ""
    lines = (
        "<tr>"
        + "".join(
            f"<td{' class=n' if index else ''}>{cell}</td>" if "answer" not in cell else f"<td>{cell}</td>"
            for index, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>{top}{"".join(lines)}</table></div>'
