"""A page of one file: a template with data put in, whose texts cannot act as markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayward.data.formats.files.outputs import unfinished_name

PLACE = "/* data */"


def write_page(out: Path, template: Path, data: Any) -> Path:
    """Write the template with `data` as JSON in its place; the page's path."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A "</script>" in a text would end the page's script; the escape is the same JSON string. Half
    # a surrogate pair is no UTF-8.
    text = text.replace("<", "\\u003c").encode(errors="replace").decode()
    before, after = template.read_text(encoding="utf-8").split(PLACE)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(out)
    try:
        unfinished.write_text(before + text + after, encoding="utf-8")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return out
