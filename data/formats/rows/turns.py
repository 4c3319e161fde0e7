"""What is in a turn: its role by any of its names, its text in parts or in one, its loss weight.

A prompt's text may have the frame of Anthropic's hh-rlhf, "\\n\\nHuman: ...\\n\\nAssistant: ...".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rayward.data.formats.rows.meaning import MASKED, MEANING_OF, MEDIA, WEIGHTS, no_place
from rayward.data.records import (
    Role,
    RowError,
    Turn,
    describe,
    number_of,
    object_of,
    text_of,
)

EMPTY_SYSTEM = "left out empty system turn"
WEIGHT_NAMES = frozenset(WEIGHTS)
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_PARTS = ("image", "audio", "video", "input_")
"""How the kinds of other parts begin that hold no text."""
SPEAKERS: dict[str, Role] = {
    "human": "user", "user": "user", "prompter": "user",
    "system": "system", "developer": "system",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "tool_response": "tool",
    "ipython": "tool",
}  # fmt: skip


def role_of(value: object, where: str) -> Role:
    """The role that a name stands for, in any case. RowError for another one."""
    if isinstance(value, str) and value in SPEAKERS:
        return SPEAKERS[value]
    name = value.strip().lower() if isinstance(value, str) else ""
    if name in SPEAKERS:
        return SPEAKERS[name]
    raise RowError(where, describe(value), "one of " + ", ".join(SPEAKERS), "unknown role")


def content_of(value: object, where: str) -> str:
    """A turn's text, or its parts [{"type": "text", "text"}, ...] in one.

    RowError for a part that is no text, such as an image.
    """
    if not isinstance(value, list | tuple):
        return text_of(value, where)
    return text_of("".join(_part(part, f"{where}[{i}]") for i, part in enumerate(value)), where)


def _part(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    part = object_of(value, where)
    kind, text = part.get("type"), part.get("text")
    if (kind in TEXT_PARTS or kind is None) and isinstance(text, str):
        return text
    meaning = MEANING_OF.get(kind) if isinstance(kind, str) else None
    if meaning is not None and meaning is not MEDIA:
        raise no_place(f"{where}.type", str(kind), kind, meaning)
    if meaning is MEDIA or str(kind).startswith(MEDIA_PARTS):
        raise no_place(f"{where}.type", "media", kind, MEDIA)
    raise RowError(f"{where}.type", describe(kind), "text", "part that is not text")


def weight_of(entry: Mapping[str, Any], where: str) -> float | None:
    """The loss weight that a turn has under one of WEIGHTS: a number, or true and false (1 and 0).

    MASKED says the contrary. NaN is none, as pandas has it.
    RowError for two that differ.
    """
    found: float | None = None
    if WEIGHT_NAMES.isdisjoint(entry):
        return None
    for name in WEIGHTS:
        value = entry.get(name)
        if value is None or value != value:
            continue
        field = f"{where}.{name}"
        weight = float(value) if isinstance(value, bool) else number_of(value, field)
        if name == MASKED:
            if weight not in (0, 1):
                raise RowError(field, describe(value), "true or false", "wrong type")
            weight = 1 - weight
        if found is not None and weight != found:
            raise RowError(field, str(weight), f"{found}, as above", "two loss weights in a turn")
        found = weight
    return found


# ---- Human: and Assistant:


def framed(text: str, name: str) -> list[Turn]:
    """Turns of "\\n\\nHuman: ...\\n\\nAssistant: ..." text; the assistant's last may be blank."""
    return _split(text, name, r"\n\n(Human|Assistant):")


def prompt_turns(value: object, name: str) -> tuple[Turn, ...]:
    """A prompt's text as turns: one question, or what its frame divides it into."""
    text = text_of(value, name)
    if in_other_frame(text):
        expected = "turns, or text without the frame of a chat template"
        raise RowError(name, describe(text), expected, "prompt in another template's frame")
    if not is_framed(text):
        return (Turn("user", text),)
    line = "\n\n" if "\n\nAssistant:" in text else "\n"
    turns = _split(line + text.lstrip(), name, line + "(Human|Assistant):")
    if turns[-1] == Turn("assistant", ""):  # the frame of the answer that follows the prompt
        turns.pop()
    return tuple(turns)


def is_framed(text: object) -> bool:
    """Whether a prompt starts with a Human's turn in this frame and ends where an answer begins.

    Two line ends before the first turn are enough to tell it, too. Other texts may speak of humans.
    """
    if not isinstance(text, str):
        return False
    if not text.lstrip().startswith("Human:"):
        return False
    answered = "\n\nAssistant:" in text or text.rstrip().endswith("\nAssistant:")
    return answered or text.startswith("\n\nHuman:")


OTHER_FRAME = re.compile(
    r"\s*(<\|im_start\|>|<\|start_header_id\|>|<\|begin_of_text\|>|<start_of_turn>|"
    r"(<s>\s*)?\[INST\]|### Human:|USER:.*ASSISTANT:)",
    re.DOTALL,
)


def in_other_frame(text: str) -> bool:
    """Whether a prompt begins with the frame that another model's template puts around turns."""
    return OTHER_FRAME.match(text) is not None


def _split(text: str, name: str, speaker_pattern: str) -> list[Turn]:
    # The group keeps the speakers: before, speaker, content, speaker, content, ...
    before, *pieces = re.split(speaker_pattern, text)
    if before.strip() or not pieces:
        expected = 'text that starts with "\\n\\nHuman:"'
        raise RowError(name, describe(text), expected, "no Human/Assistant frame")
    spoken = zip(pieces[::2], pieces[1::2], strict=True)
    return [Turn(SPEAKERS[speaker.lower()], content.strip()) for speaker, content in spoken]
