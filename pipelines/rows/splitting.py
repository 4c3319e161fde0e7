"""Which file of the prepare stage a record goes to, by a hash of its prompt.

A split of rows would leak: the same question stands in several rows, with other answers, and would
be trained in one and measured in another. By the prompt all of them go to one file, and the files
of a run stay the same when rows are added. No row that asks an evaluation prompt is in any of them.
Of a record nothing is kept but the hash of its question and the number of its file.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rayward.configs.schema import Config
from rayward.configs.stages import trains_judge
from rayward.data.records import Conversation, Labelled, Prompt, Turn
from rayward.pipelines.rows.prompts import prompt_key
from rayward.pipelines.rows.reading import to_first_answer

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

MEASURED = {"conversations": "sft_heldout", "rankings": "heldout"}
"""The files that are trained on, and those in which rows of theirs are held out."""

NAMES = tuple(FILES)
NOWHERE = len(NAMES)
"""In place of a file's number: the record is in none."""


class Division:
    """The file of each record of a list of sources, told one after another.

    `files`: of each its number in NAMES, or NOWHERE. What also asks an evaluation prompt is counted
    in `dropped`, under the list's first file of its kind.
    """

    def __init__(
        self, name: str, config: Config, evaluation: Questions, dropped: Mapping[str, Counter[str]]
    ) -> None:
        self.name, self.config, self.evaluation = name, config, evaluation
        self.files = bytearray()
        self._questions = array("Q")
        self._dropped = dropped
        self._judged = trains_judge(config)

    def add(self, record: Any) -> None:
        """Decide on one more record."""
        question = b""
        file = self.name
        if self.name in ("conversations", "preferences"):
            digest = _digest(_question(record))
            question, file = digest[:8], self._file_of(record, _share(digest))
        self._questions.append(int.from_bytes(question, "big"))
        # All evaluation prompts are asked about, also those that are left out later as too long, so
        # that what is trained on does not depend on the context.
        if self.name != "evaluation_prompts" and self.evaluation.asked_in(record.turns):
            self._dropped[first_file(self.name, record)]["also an evaluation prompt"] += 1
            self.files.append(NOWHERE)
        else:
            self.files.append(NAMES.index(file))

    def leave_out(self) -> None:
        """One more record, which is in no file."""
        self._questions.append(0)
        self.files.append(NOWHERE)

    def _file_of(self, record: Any, share: float) -> str:
        data = self.config.data
        if self.name == "conversations":
            return "sft_heldout" if share < data.sft_heldout_fraction else "conversations"
        if isinstance(record, Labelled):
            return "labelled_heldout" if share < data.heldout_fraction else "labelled"
        if share < data.heldout_fraction:
            return "heldout"
        # The upper half of what is left: a judge that had seen the reward model's rankings would
        # share its mistakes, and would not see what RL makes of them.
        return "judge" if self._judged and share > (1 + data.heldout_fraction) / 2 else "rankings"

    def end(self) -> None:
        """After the last record: of few rows, those of one question are measured on."""
        for trained, measured in MEASURED.items():
            if FILES[trained] == self.name and not self.rows_of(measured):
                self._move_one_question(self._numbers_of(trained), measured)
        if self.name == "preferences":
            self._hold_labels_out()

    def _hold_labels_out(self) -> None:
        """Labelled answers are held out where rankings of the same prompt are."""
        labelled = self._numbers_of("labelled")
        asked = self._asked(labelled)
        # By the share of the prompt they are, but for those of the one question of few rankings.
        measured = np.isin(asked, self._asked(self._numbers_of("heldout")))
        self._move(labelled[measured], "labelled_heldout")
        if self.rows_of("heldout") or self.rows_of("labelled_heldout"):
            return
        # Few rows: of a question that no ranking asks, since all of those are trained on.
        trained = self._asked(self._numbers_of("rankings", "judge"))
        others = labelled[~np.isin(asked, trained)]
        self._move_one_question(others, "labelled_heldout")

    def _move_one_question(self, rows: NDArray[np.int64], measured: str) -> None:
        """Move those of the `rows` that ask one question to a file that is measured on.

        The question with the fewest records, and the last of such: mostly that of the last record.
        Nothing is done where all ask the same.
        """
        questions = self._asked(rows)
        keys, counts = np.unique(questions, return_counts=True)
        if len(keys) < 2:
            return
        fewest = keys[counts == counts.min()]
        chosen = questions[np.flatnonzero(np.isin(questions, fewest))[-1]]
        self._move(rows[questions == chosen], measured)

    def _numbers_of(self, *names: str) -> NDArray[np.int64]:
        """The numbers of the records of some files."""
        files = np.frombuffer(self.files, dtype=np.uint8)
        return np.flatnonzero(np.isin(files, [NAMES.index(name) for name in names]))

    def _asked(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """The questions of some records."""
        return np.frombuffer(self._questions, dtype=np.uint64)[rows]

    def _move(self, rows: NDArray[np.int64], name: str) -> None:
        for row in rows.tolist():
            self.files[row] = NAMES.index(name)

    def rows_of(self, file: str) -> int:
        """Records of a file."""
        return self.files.count(NAMES.index(file))


def first_file(name: str, record: Any) -> str:
    """The file at which a record of a list is counted that is divided into none."""
    if isinstance(record, Labelled):
        return "labelled"
    return next(file for file, source in FILES.items() if source == name)


def _question(record: Any) -> str:
    """What makes two records ask the same.

    Of a conversation the first question: those that begin alike are held out together.
    """
    is_chat = isinstance(record, Conversation)
    return prompt_key(to_first_answer(record.turns) if is_chat else record.turns)


def _digest(key: str) -> bytes:
    # Python's own hash differs from process to process.
    return hashlib.sha256(key.encode()).digest()


def _share(digest: bytes) -> float:
    """A number in [0, 1) that depends on the text alone, to split rows alike in every run."""
    # 48 bits: a float of 53 holds them exactly.
    return int.from_bytes(digest[:6], "big") / 2**48


@dataclass(frozen=True)
class Questions:
    """Evaluation prompts: whole ones by their key, and those of a single turn by its text.

    `last`: the text of the last turn of each, without which a key need not be looked up.
    """

    keys: frozenset[str]
    single: frozenset[str]
    last: frozenset[str]

    @classmethod
    def of(cls, prompts: Iterable[Prompt]) -> Questions:
        # Without system messages: the same question under another one is still the same question.
        questions = [
            tuple(turn for turn in prompt.turns if turn.role != "system") for prompt in prompts
        ]
        return cls(
            frozenset(prompt_key(turns) for turns in questions),
            frozenset(turns[0].content.strip() for turns in questions if len(turns) == 1),
            frozenset(turns[-1].content.strip() for turns in questions),
        )

    def asked_in(self, turns: Sequence[Turn]) -> bool:
        """Whether a conversation asks one of them, in whichever turn, under any system message."""
        if not self.keys:
            return False
        dialogue = [turn for turn in turns if turn.role != "system"]
        # A single question may come up in any turn. One with a history is the same only after the
        # same history, so the turns up to here must be its turns.
        return any(
            turn.content.strip() in self.single or prompt_key(dialogue[: index + 1]) in self.keys
            for index, turn in enumerate(dialogue)
            if turn.role == "user" and turn.content.strip() in self.last
        )
