"""Links to files of the repository that are no pages, as `[NAME](../NAME)`: their names, in code
style. On a site of pages alone they would lead nowhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+)\)")
logger = logging.getLogger(__name__)


def _read(app: Sphinx, page: str, text: list[str]) -> None:
    folder = (Path(app.srcdir) / page).parent

    def name(found: re.Match[str]) -> str:
        if not (folder / found[2]).is_file():
            logger.warning("no such file: %s", found[2], location=page)
        return f"`{found[1]}`"

    text[0] = OUTSIDE.sub(name, text[0])


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
