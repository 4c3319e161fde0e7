"""Fields that carry meaning for training, by the names that people give them.

A reader need not know them. Those that stand beside the turns (system text, earlier turns, a
verdict, a reference answer, tools, reasoning) are read in every format, by data/formats/beside.py.
A row with one that nothing reads is set aside by the field's name, unless the user has it ignored.
Every other field that is not read is passed over and counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

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
    SYSTEM: "system system_prompt sys_prompt system_message system_instruction",
    HISTORY: "history",
    VERDICT: (
        "label kto_tag kto_label is_good is_desirable desirable is_safe is_correct is_chosen "
        "thumbs_up"
    ),
    # In this order: of several in a row, the first is the reference.
    REFERENCE: (
        "ground_truth reward_model reference_answer reference expected_answer final_answer "
        "gold_answer answer solution"
    ),
    WEIGHT: ("weight loss train loss_weight loss_mask training trainable masked mask train_detail"),
    TOOLS: "tools functions",
    REASONING: "reasoning_content reasoning thinking",
    CALLS: "tool_calls function_call",
    MEDIA: (
        "image images image_url image_urls image_path image_paths image_file audio audios "
        "audio_path video videos video_path"
    ),
}


def _spellings(name: str) -> set[str]:
    """A name in other spellings: systemPrompt, System-Prompt, SYSTEM_PROMPT, sysprompt."""
    words = [(word, word.capitalize(), word.upper()) for word in name.split("_")]
    return {mark.join(spelled) for spelled in product(*words) for mark in ("_", "-", "")}


SPELLED = {
    spelled: name
    for names in NAMES.values()
    for name in names.split()
    for spelled in sorted(_spellings(name))
}
"""The names by their spellings."""
MEANING_OF = {
    spelled: meaning
    for meaning, names in NAMES.items()
    for name in names.split()
    for spelled in _spellings(name)
}
# "mask" is in use for trained and for masked turns; Axolotl's "train_detail" has a mask a text.
WEIGHTS = tuple(name for name in NAMES[WEIGHT].split() if name not in ("mask", "train_detail"))
"""Names of a turn's loss weight that are read."""
MASKED = "masked"
"""torchtune's: true is a turn that is not trained on."""


def no_place(field: str, name: str, value: object, meaning: Meaning) -> RowError:
    """The error of a row that says what a record cannot, with what would keep the rest of it."""
    expected = f"no {name}, since {meaning.says} cannot be kept"
    if meaning.may_be_ignored:
        expected += f" (ignore {name} to use the rest of the row)"
    return RowError(field, describe(value), expected, f"{name} cannot be kept")
