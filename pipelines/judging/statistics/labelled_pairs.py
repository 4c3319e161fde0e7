"""Labelled pairs as questions and answers that a judge can be asked about, and verdicts on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.judging.annotations import Verdict
    from rayward.data.judging.labels import LabelledPair
    from rayward.pipelines.rows.left_out import LeftOut

FIRST, SECOND = "first", "second"  # the names of the two "models" in files that are written


def write_pairs(folder: Path, pairs: Sequence[LabelledPair]) -> None:
    """question.jsonl, first.jsonl and second.jsonl in FastChat's shapes."""
    from rayward.data.formats.files.outputs import open_output

    rows: dict[str, Iterator[dict[str, Any]]] = {
        "question": (
            {"question_id": pair.id, "category": "", "turns": [pair.prompt]} for pair in pairs
        ),
        FIRST: (_answer(pair.id, FIRST, pair.first) for pair in pairs),
        SECOND: (_answer(pair.id, SECOND, pair.second) for pair in pairs),
    }
    for name, of_file in rows.items():
        with open_output(folder / f"{name}.jsonl") as file:
            for row in of_file:
                file.write(row)


def _answer(identity: str, model: str, text: str) -> dict[str, Any]:
    return {
        "question_id": identity,
        "answer_id": f"{model}-{identity}",
        "model_id": model,
        "choices": [{"index": 0, "turns": [text]}],
    }


class Finder:
    """Finds the pair that a verdict is on: by its answers, and its id or prompt."""

    def __init__(self, pairs: Sequence[LabelledPair]) -> None:
        self.by_answers: dict[frozenset[str], list[int]] = {}
        self.pairs = pairs
        for index, pair in enumerate(pairs):
            self.by_answers.setdefault(frozenset((pair.first, pair.second)), []).append(index)

    def of(self, verdict: Verdict) -> int | None:
        """The index of the pair; None where the verdict is on none of them, or on several."""
        answers = frozenset((verdict.row["output_1"], verdict.row["output_2"]))
        found = self.by_answers.get(answers, [])
        name = str(verdict.row.get("question_id"))
        if by_id := [index for index in found if self.pairs[index].id == name]:
            return by_id[0]
        if len(found) > 1:
            found = [index for index in found if self.pairs[index].prompt == verdict.instruction]
        return found[0] if len(found) == 1 else None


def read_verdicts(
    files: Sequence[str], pairs: Sequence[LabelledPair], left_out: LeftOut
) -> dict[str, dict[int, Verdict]]:
    """The verdicts of each judge by the index of their pair. ValueError: a file without one.

    One that is on none of the pairs is in `left_out`; of two on the same pair the last counts.
    """
    from rayward.data.judging.annotations import BadRow, verdicts
    from rayward.pipelines.judging.statistics.verdict_groups import REPEATED, add_bad_row

    finder = Finder(pairs)
    found: dict[str, dict[int, Verdict]] = {}
    for path in files:
        before = sum(map(len, found.values()))
        for verdict in verdicts(path, keep_rows=True):
            if isinstance(verdict, BadRow):
                add_bad_row(left_out, verdict)
                continue
            index = finder.of(verdict) if verdict.row else None
            if index is None:
                shown = verdict.instruction[:60]
                left_out.add(str(path), "a verdict on none of the pairs", repr(shown), "a pair")
                continue
            of_judge = found.setdefault(verdict.annotator, {})
            if index in of_judge:
                left_out.add(f"{path}: {pairs[index].id}", REPEATED, "a verdict again", "one")
            of_judge[index] = verdict
        if sum(map(len, found.values())) == before:
            raise ValueError(f"{path}: none of its verdicts is on one of the {len(pairs)} pairs")
    return found
