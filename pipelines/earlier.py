"""Runs that an earlier version began: where this one would make their rows otherwise, and what to make again.

A manifest says by `rows` how its stage's rows were made; those up to commit c0eebdd say nothing. Such a run goes on,
unless what has changed since concerns its template and tokenizer: then it stops before old and new rows are mixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.model import Model
from data.records import Turn
from data.scored import scored
from data.templates import Template, encode, find, needs_bos
from data.tokenizer import load_tokenizer

ROWS = 1
"""How rows are made now; goes up with every change of ids, weights or ends, which gets its check below."""
PROBE = (Turn("user", "Hello there"), Turn("assistant", "Hi, you."), Turn("user", "And?"), Turn("assistant", "Yes."))


def outdated(stage: str, manifest: Mapping[str, Any], model: Model, tokenizer_folder: Path) -> str:
    """Why the rows of a finished stage are not those that this version would make; "" where they are."""
    if manifest.get("rows", 0) >= ROWS or stage not in ("prepare", "reward") or not tokenizer_folder.is_dir():
        return ""
    template, tokenizer = find(model.template), load_tokenizer(tokenizer_folder)
    return ids_differ(template, tokenizer) if stage == "prepare" else ends_differ(template, tokenizer)


def ids_differ(template: Template, tokenizer: Any) -> str:
    """Of prepare, whose tokenizer and template all stages take."""
    if template.bos and tokenizer.bos_token_id is not None and not needs_bos(template, tokenizer):
        return f"chat template {template.name} put {tokenizer.bos_token!r} before every row twice then, once now"
    return ""


def ends_differ(template: Template, tokenizer: Any) -> str:
    """Of reward, whose rows ended where the conversation's text did; now they end at the end token."""
    if encode(template, PROBE, tokenizer).ids == scored(template, PROBE, tokenizer).ids:
        return ""
    return f"chat template {template.name} writes more after the end token: there scored rows ended then, at it now"
