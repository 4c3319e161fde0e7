"""Our docstrings are plain text with `names` in single backticks; Sphinx reads reStructuredText."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

NAMES = re.compile(r"`([^`]+)`")
MARKUP = re.compile(r"([*|\\]|_\b)")


def as_rest(line: str) -> str:
    """A line with its names as literals, and nothing else taken for markup.

    >>> as_rest("`lam` times |gap|")
    '``lam`` times \\\\|gap\\\\|'
    """
    # A list stays one.
    if line.startswith("* "):
        return "* " + as_rest(line[2:])
    pieces = NAMES.split(line)
    # Every second piece is a name.
    texts = [MARKUP.sub(r"\\\1", piece) for piece in pieces[::2]]
    names = [f"``{name}``" for name in pieces[1::2]]
    return "".join(text + name for text, name in zip(texts, [*names, ""], strict=True))


def _process(app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]) -> None:
    kept = []
    for line in lines:
        example = line.startswith("    ")
        if example and not (kept and kept[-1].startswith("    ")):
            kept += ["::", ""]
        kept.append(line if example else as_rest(line))
    lines[:] = kept


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
