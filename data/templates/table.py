"""The chat templates as values; their strings are in data/templates/templates.toml.

How they are used is in `rayward.data.templates.template`.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rayward.data.records import Role

INPUT = "\n\n### Input:\n"


class Frame(NamedTuple):
    """What stands around a turn: `before`, then `lead` + the content as one piece, then `after`.

    `before` and `after` are the template's own text and may hold special tokens. What precedes the
    end token in `after` is one piece with the content.
    """

    before: str
    lead: str
    after: str


class Piece(NamedTuple):
    """A stretch of text that is encoded alone, or a special token.

    `weight` is its share in the SFT loss. `verbatim`: a space that it starts with is the content's
    own.
    """

    text: str
    special: bool
    weight: float
    verbatim: bool = False


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template.

    `default_system` stands in where the conversation has no system turn; `input_system`, if any,
    where its first question has an input after `INPUT`, as Alpaca's. `special_tokens` are those
    that the tokenizer must have. The first ends an answer, so it stands in `assistant.after`. BOS
    is used where a tokenizer has one, unless `bos` is False. `head` opens every conversation.
    `between_pairs` stands between an answer and the next question. `folds_system`: the framed
    system message is the beginning of the first question. `condition`: the words in its frames that
    name the class of the answer, empty where it has none (C-RLFT).
    """

    name: str
    system: Frame
    user: Frame
    assistant: Frame
    special_tokens: tuple[str, ...]
    default_system: str = ""
    input_system: str = ""
    head: str = ""
    between_pairs: str = ""
    folds_system: bool = False
    bos: bool = True
    condition: str = ""

    @property
    def end_token(self) -> str:
        """The special token that ends an answer."""
        return self.special_tokens[0]

    @property
    def is_tokenizers(self) -> bool:
        """Whether it only stands for the chat template that the tokenizer brings.

        See `rayward.data.templates.published.template`.
        """
        return not self.special_tokens

    def frame(self, role: Role) -> Frame:
        """The frame of `role`."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


def _template(name: str, entry: dict[str, Any]) -> Template:
    frames = {role: Frame(*entry[role]) for role in ("system", "user", "assistant")}
    return Template(name, **entry | frames | {"special_tokens": tuple(entry["special_tokens"])})


_TABLE = tomllib.loads(Path(__file__).with_name("templates.toml").read_text(encoding="utf-8"))
TEMPLATES: dict[str, Template] = {name: _template(name, entry) for name, entry in _TABLE.items()}


def find(name: str) -> Template:
    """The template `name`. ValueError lists the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
