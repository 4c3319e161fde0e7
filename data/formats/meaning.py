"""Fields that carry meaning for training, by the names that people give them.

A reader need not know them. Those that stand beside the turns (system text, earlier turns, a
verdict, a reference answer, tools, reasoning) are read in every format, by data/formats/beside.py.
A row with one that nothing reads is set aside by the field's name, unless the user has it ignored.
Every other field that is not read is passed over and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayward.data.records import RowError, describe


@dataclass(frozen=True, slots=True)
class Meaning:
    """What fields of some names say.

    `beside`: it is read where it stands beside the turns. `elsewhere`: where it stands in other
    places that nobody reads, the row is set aside. `may_be_ignored`: the rest of a row is of use
    without it.
    """

    says: str
    beside: bool = False
    elsewhere: bool = True
    may_be_ignored: bool = True


SYSTEM = Meaning("a system text", beside=True, elsewhere=False)
HISTORY = Meaning("earlier turns", beside=True, elsewhere=False)
VERDICT = Meaning("a verdict on the answer", beside=True, elsewhere=False)
REFERENCE = Meaning("a reference answer", beside=True, elsewhere=False)
WEIGHT = Meaning("a loss weight or mask")
TOOLS = Meaning("tools", beside=True)
REASONING = Meaning("reasoning", beside=True)
CALLS = Meaning("calls of tools")
# Of a text about a picture, words without the picture are left, and often a bare marker.
MEDIA = Meaning("images, audio or video", may_be_ignored=False)

NAMES = {
    SYSTEM: "system system_prompt system_message system_instruction",
    HISTORY: "history",
    VERDICT: "label kto_tag kto_label is_good is_desirable desirable is_safe",
    # In this order: of several in a row, the first is the reference.
    REFERENCE: (
        "ground_truth reward_model reference_answer reference expected_answer final_answer "
        "gold_answer answer solution"
    ),
    WEIGHT: "weight loss train loss_weight loss_mask mask",
    TOOLS: "tools functions",
    REASONING: "reasoning_content reasoning thinking",
    CALLS: "tool_calls function_call",
    MEDIA: "image images image_url image_urls audio audios video videos",
}
MEANING_OF = {name: meaning for meaning, names in NAMES.items() for name in names.split()}
WEIGHTS = tuple(NAMES[WEIGHT].split())


def no_place(field: str, name: str, value: object, meaning: Meaning) -> RowError:
    """The error of a row that says what a record cannot, with what would keep the rest of it."""
    expected = f"no {name}, since {meaning.says} cannot be kept"
    if meaning.may_be_ignored:
        expected += f" (ignore {name} to use the rest of the row)"
    return RowError(field, describe(value), expected, f"{name} cannot be kept")
