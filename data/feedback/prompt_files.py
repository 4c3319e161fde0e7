"""The prompts for models that generate and judge data: text files with $fields.

They are in data/feedback/prompts/, and each can be replaced. A file may hold alternatives between
lines of "---", of which one is drawn each time.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from rayward.data.records import Turn

PROMPTS_FOLDER = Path(__file__).parent / "prompts"
Prompts = Mapping[str, Sequence[str]]


def digest(*parts: object) -> str:
    """A hash of `parts` as text, from which everything is drawn.

    What is drawn for an item thereby depends on the item and the seed alone: the order of requests
    and restarts change nothing.
    """
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def transcript(turns: Sequence[Turn], tools: str | None = None) -> str:
    """A conversation as a prompt quotes it, after the schemas of its tools."""
    quoted = [f"{turn.role.upper()}: {_quoted(turn)}" for turn in turns]
    return "\n\n".join([f"TOOLS ON OFFER: {tools}", *quoted] if tools else quoted)


def _quoted(turn: Turn) -> str:
    thoughts = [] if turn.reasoning is None else [f"(thinks: {turn.reasoning})"]
    calls = [f"(calls {call.name} with {call.arguments})" for call in turn.tool_calls]
    said = [turn.content] if turn.content.strip() or not calls else []
    return "\n".join([*thoughts, *said, *calls])


def fill(prompts: Prompts, name: str, key: object = "", **fields: object) -> str:
    """A prompt with its fields filled in; `key` decides which of the alternatives."""
    alternative = random.Random(digest(key, name)).choice(prompts[name])
    # `substitute` raises for a missing field. Fields are put in once, so a $ in data stays one.
    return Template(alternative).substitute(fields)


def load_prompts(folder: Path | None = None) -> Prompts:
    """The alternatives of our prompts by name; `folder` replaces those that it has a file of.

    ValueError: a .txt file of another name, or one whose fields are not those of the file that it
    replaces.
    """
    prompts = {path.stem: _alternatives(path) for path in sorted(PROMPTS_FOLDER.glob("*.txt"))}
    replacing = sorted(folder.glob("*.txt")) if folder else []
    names = {path.stem for path in replacing}
    if folder and (not names or names - prompts.keys()):
        raise ValueError(
            f"{folder}: its .txt files are {sorted(names)}; expected some of {', '.join(prompts)}"
        )
    for path in replacing:
        # Told here: `fill` would fail in the middle of a run, and miss a field that is left out.
        wanted, texts = _fields(prompts[path.stem][0]), _alternatives(path)
        if any(_fields(text) != wanted or not Template(text).is_valid() for text in texts):
            raise ValueError(
                f"{path}: each part needs the fields {sorted(wanted)} and no others; a plain $ is "
                "$$"
            )
        prompts[path.stem] = texts
    return prompts


def _alternatives(path: Path) -> list[str]:
    return [
        part.strip()
        for part in re.split(r"^---\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]


def _fields(text: str) -> set[str]:
    return set(Template(text).get_identifiers())
