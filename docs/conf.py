"""How `make docs` builds these pages: Sphinx with MyST, without a network and without scripts from
elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "extensions")]

import rayward  # noqa: E402
from rayward.pipelines.interface import RunReader  # noqa: E402

# It is offered as rayward.Run, and is documented under that name.
RunReader.__name__ = RunReader.__qualname__ = "Run"
RunReader.__module__ = "rayward"

project = "Rayward"
author = "The Rayward authors"
copyright = author
version = release = rayward.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "commands",
    "docstrings",
    "formulas",
    "outside",
    "settings",
]
exclude_patterns = ["extensions"]
# --run stays --run.
smartquotes = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"Rayward {version}"
html_static_path = ["static"]
html_css_files = ["rayward.css"]
html_math_renderer = "formulas"
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".gp, .go"
