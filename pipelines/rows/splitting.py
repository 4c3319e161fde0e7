"""Which file of the prepare stage a record goes to, by a hash of its prompt; none may ask what
evaluation asks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayward.configs.schema import Config
from rayward.configs.stages import trains_judge
from rayward.data.records import Prompt, Ranking, Turn
from rayward.pipelines.rows.reading import to_first_answer
from rayward.pipelines.rows.rows import prompt_key

FILES = {
    "conversations": "conversations",
    "sft_heldout": "conversations",
    "rankings": "preferences",
    "heldout": "preferences",
    "judge": "preferences",
    "prompts": "prompts",
    "evaluation_prompts": "evaluation_prompts",
}
"""The files of records that the stage writes, and the list of sources that each comes from."""


def divide(
    records: dict[str, list], config: Config, dropped: Mapping[str, Counter[str]]
) -> dict[str, list]:
    """The records of each file. What also asks an evaluation prompt is left out, and counted in
    `dropped`.
    """
    split: dict[str, list] = {name: [] for name in FILES}
    evaluation = Questions.of(records["evaluation_prompts"])
    for record in _without(records["conversations"], evaluation, dropped["conversations"]):
        heldout = (
            _share(prompt_key(to_first_answer(record.turns))) < config.data.sft_heldout_fraction
        )
        split["sft_heldout" if heldout else "conversations"].append(record)
    for record in _without(records["preferences"], evaluation, dropped["rankings"]):
        split[_preference_split(record, config)].append(record)
    if records["conversations"] and not split["sft_heldout"] and len(split["conversations"]) > 1:
        # Few rows: one of them is measured on.
        split["sft_heldout"].append(split["conversations"].pop())
    split["prompts"] = list(_without(records["prompts"], evaluation, dropped["prompts"]))
    split["evaluation_prompts"] = records["evaluation_prompts"]
    return split


@dataclass(frozen=True)
class Questions:
    """Evaluation prompts: whole ones by their key, and those of a single turn by what the user says
    in it.
    """

    keys: frozenset[str]
    single: frozenset[str]

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Questions:
        asked = [
            tuple(turn for turn in prompt.turns if turn.role != "system") for prompt in prompts
        ]
        return cls(
            frozenset(prompt_key(turns) for turns in asked),
            frozenset(turns[0].content.strip() for turns in asked if len(turns) == 1),
        )

    def asked_in(self, turns: Sequence[Turn]) -> bool:
        """Whether a conversation asks one of them, at its start or in a later turn, under any
        system message.
        """
        said = [turn for turn in turns if turn.role != "system"]
        return any(
            turn.content.strip() in self.single or prompt_key(said[: index + 1]) in self.keys
            for index, turn in enumerate(said)
            if turn.role == "user"
        )


def _without(records: Iterable[Any], evaluation: Questions, dropped: Counter[str]) -> Iterator[Any]:
    """Records that ask no evaluation prompt."""
    for record in records:
        if evaluation.asked_in(record.turns):
            dropped["also an evaluation prompt"] += 1
        else:
            yield record


def _share(key: str) -> float:
    """A number in [0, 1) that depends on the text alone, to split rows the same way in every
    run.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _preference_split(record: Ranking, config: Config) -> str:
    """Training, held-out measurement, or the second reward model that judges."""
    share = _share(prompt_key(record.turns))
    if share < config.data.heldout_fraction:
        return "heldout"
    judged = trains_judge(config) and share > (1 + config.data.heldout_fraction) / 2
    return "judge" if judged else "rankings"
