"""Which file of the prepare stage a record goes to, by a hash of its prompt.

A split of rows would leak: the same question stands in several rows, with other answers, and would
be trained in one and measured in another. By the prompt all of them go to one file, and the files
of a run stay the same when rows are added. No row that asks an evaluation prompt is in any of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rayward.configs.schema import Config
from rayward.configs.stages import trains_judge
from rayward.data.records import Conversation, Labelled, Prompt, Ranking, Turn
from rayward.pipelines.rows.prompts import prompt_key
from rayward.pipelines.rows.reading import to_first_answer

R = TypeVar("R", Conversation, Ranking, Prompt, Labelled)
A = TypeVar("A", Conversation, Ranking, Labelled)

FILES = {
    "conversations": "conversations",
    "sft_heldout": "conversations",
    "rankings": "preferences",
    "heldout": "preferences",
    "judge": "preferences",
    "labelled": "preferences",
    "labelled_heldout": "preferences",
    "prompts": "prompts",
    "evaluation_prompts": "evaluation_prompts",
}
"""The files of records that the stage writes, and the list of sources that each comes from."""


def divide(
    records: dict[str, list], config: Config, dropped: Mapping[str, Counter[str]]
) -> dict[str, list]:
    """The records of each file. What also asks an evaluation prompt is counted in `dropped`."""
    split: dict[str, list] = {name: [] for name in FILES}
    # All that came, also those that are left out later as too long, so that what is trained on does
    # not depend on the context.
    evaluation = Questions.of(records["evaluation_prompts"])
    for record in _without(records["conversations"], evaluation, dropped["conversations"]):
        share = _share(_question(record))
        heldout = share < config.data.sft_heldout_fraction
        split["sft_heldout" if heldout else "conversations"].append(record)
    rankings = [record for record in records["preferences"] if not isinstance(record, Labelled)]
    for record in _without(rankings, evaluation, dropped["rankings"]):
        split[_preference_split(record, config)].append(record)
    # Few rows: those of one question are measured on.
    for trained, measured in (("conversations", "sft_heldout"), ("rankings", "heldout")):
        if not split[measured]:
            split[trained], split[measured] = _one_question_out(split[trained])
    labelled = [record for record in records["preferences"] if isinstance(record, Labelled)]
    _divide_labelled(_without(labelled, evaluation, dropped["labelled"]), split, config)
    split["prompts"] = list(_without(records["prompts"], evaluation, dropped["prompts"]))
    split["evaluation_prompts"] = records["evaluation_prompts"]
    return split


def _divide_labelled(records: Iterable[Labelled], split: dict[str, list], config: Config) -> None:
    """Labelled answers, held out where rankings of the same prompt are."""
    measured = {_question(record) for record in split["heldout"]}
    for record in records:
        key = _question(record)
        heldout = key in measured or _share(key) < config.data.heldout_fraction
        split["labelled_heldout" if heldout else "labelled"].append(record)
    if measured or split["labelled_heldout"]:
        return
    # Few rows: of a question that no ranking asks, since all of those are trained on.
    trained = {_question(record) for record in (*split["rankings"], *split["judge"])}
    others = [record for record in split["labelled"] if _question(record) not in trained]
    split["labelled_heldout"] = _one_question_out(others)[1]
    chosen = {_question(record) for record in split["labelled_heldout"]}
    split["labelled"] = [row for row in split["labelled"] if _question(row) not in chosen]


def _question(record: Conversation | Ranking | Labelled) -> str:
    """What makes two records ask the same.

    Of a conversation the first question: those that begin alike are held out together.
    """
    is_chat = isinstance(record, Conversation)
    return prompt_key(to_first_answer(record.turns) if is_chat else record.turns)


def _one_question_out(records: list[A]) -> tuple[list[A], list[A]]:
    """The records without those of one question, and those; none of these if all ask the same.

    The question with the fewest records, and the last of such: mostly that of the last record.
    """
    counts = Counter(map(_question, records))
    if len(counts) < 2:
        return records, []
    fewest = min(counts.values())
    chosen = next(key for key in map(_question, reversed(records)) if counts[key] == fewest)
    return (
        [record for record in records if _question(record) != chosen],
        [record for record in records if _question(record) == chosen],
    )


@dataclass(frozen=True)
class Questions:
    """Evaluation prompts: whole ones by their key, and those of a single turn by its text."""

    keys: frozenset[str]
    single: frozenset[str]

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Questions:
        # Without system messages: the same question under another one is still the same question.
        questions = [
            tuple(turn for turn in prompt.turns if turn.role != "system") for prompt in prompts
        ]
        return cls(
            frozenset(prompt_key(turns) for turns in questions),
            frozenset(turns[0].content.strip() for turns in questions if len(turns) == 1),
        )

    def asked_in(self, turns: Sequence[Turn]) -> bool:
        """Whether a conversation asks one of them, in whichever turn, under any system message."""
        dialogue = [turn for turn in turns if turn.role != "system"]
        # A single question may come up in any turn. One with a history is the same only after the
        # same history, so the turns up to here must be its turns.
        return any(
            turn.content.strip() in self.single or prompt_key(dialogue[: index + 1]) in self.keys
            for index, turn in enumerate(dialogue)
            if turn.role == "user"
        )


def _without(records: Iterable[R], evaluation: Questions, dropped: Counter[str]) -> Iterator[R]:
    """Records that ask no evaluation prompt."""
    for record in records:
        if evaluation.asked_in(record.turns):
            dropped["also an evaluation prompt"] += 1
        else:
            yield record


def _share(key: str) -> float:
    """A number in [0, 1) that depends on the text alone, to split rows alike in every run."""
    # 48 bits: a float of 53 holds them exactly. Python's own hash differs from process to process.
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _preference_split(record: Ranking, config: Config) -> str:
    """Training, held-out measurement, or the second reward model that judges."""
    share = _share(prompt_key(record.turns))
    if share < config.data.heldout_fraction:
        return "heldout"
    # The upper half of what is left: a judge that had seen the reward model's rankings would share
    # its mistakes, and would not see what RL makes of them.
    judged = trains_judge(config) and share > (1 + config.data.heldout_fraction) / 2
    return "judge" if judged else "rankings"
