"""Formulas as HTML and CSS, which every browser shows alike: no script, no font, no network.

docutils brings the translation from LaTeX and the style sheet. (MathML needs a font with a table of
mathematics, which many Linux desktops do not have: subscripts then stand on the line.)
"""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import docutils
from docutils import nodes
from docutils.utils.math import math2html
from sphinx.application import Sphinx
from sphinx.util import logging

STYLE = Path(docutils.__file__).parent / "writers" / "html5_polyglot" / "math.css"
logger = logging.getLogger(__name__)


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="formula">{_formula(node, display=False)}</span>')
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{_formula(node, display=True)}</div>')
    raise nodes.SkipNode


def _formula(node: nodes.Element, display: bool) -> str:
    math2html.DocumentParameters.displaymode = display
    # TeX has a space after the name of a function, the translation has none.
    text = node.astext().replace("\\log ", "\\log\\,")
    with redirect_stderr(io.StringIO()) as told:
        formula: str = math2html.math2html(text)
    if told.getvalue():
        logger.warning("a formula that cannot be shown: %s", told.getvalue(), location=node)
    return formula


def _style(app: Sphinx, config: Any) -> None:
    config.html_static_path.append(str(STYLE))


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("formulas", (_inline, None), (_block, None))
    app.connect("config-inited", _style)
    app.add_css_file(STYLE.name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
