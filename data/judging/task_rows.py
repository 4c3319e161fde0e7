"""Rows of the benchmarks that lm-eval measures, in the shapes that the hub has them in.

A row is looked at before a model is asked: what lacks an answer would end lm-eval half-way, and an
item less is another benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayward.data.records import RowError, describe, list_of, object_of

Row = Mapping[str, Any]


def _text(row: Row, field: str) -> str:
    """A text, which may be empty: some endings of HellaSwag and choices of MMLU are."""
    value = row.get(field)
    if not isinstance(value, str):
        raise RowError(field, describe(value), "text")
    return value


def _texts(value: object, field: str, least: int = 1) -> Sequence[str]:
    texts = list_of(value, field)
    if len(texts) < least or not all(isinstance(text, str) for text in texts):
        raise RowError(field, describe(value), f"a list of {least} texts or more")
    return texts


def _arc(row: Row) -> None:
    _text(row, "question")
    choices = object_of(row.get("choices"), "choices")
    texts = _texts(choices.get("text"), "choices.text", 2)
    labels = _texts(choices.get("label"), "choices.label", 2)
    if len(texts) != len(labels):
        raise RowError("choices.label", f"{len(labels)} labels", f"{len(texts)}, one a text")
    if row.get("answerKey") not in labels:
        raise RowError("answerKey", describe(row.get("answerKey")), "one of choices.label")


def _hellaswag(row: Row) -> None:
    for field in ("activity_label", "ctx_a", "ctx_b"):
        _text(row, field)
    endings = _texts(row.get("endings"), "endings", 2)
    label = str(row.get("label"))  # text on the hub, a number in the authors' own files
    if not label.isdecimal() or int(label) >= len(endings):
        raise RowError("label", describe(row.get("label")), f"0 to {len(endings) - 1}")


def _mmlu(row: Row) -> None:
    _text(row, "question")
    if len(_texts(row.get("choices"), "choices", 4)) != 4:
        raise RowError("choices", describe(row.get("choices")), "a list of 4 texts")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < 4:
        raise RowError("answer", repr(answer)[:60], "0 to 3")


def _truthfulqa(row: Row) -> None:
    _text(row, "question")
    for field in ("mc1_targets", "mc2_targets"):
        targets = object_of(row.get(field), field)
        if "choices" not in targets:  # mc_task.json of the authors has the choices as its names
            raise RowError(field, f"the fields {', '.join(targets)[:60]}", "choices and labels")
        choices = _texts(targets["choices"], f"{field}.choices", 2)
        labels = list_of(targets.get("labels"), f"{field}.labels")
        if len(labels) != len(choices) or not set(labels) <= {0, 1}:
            raise RowError(f"{field}.labels", describe(labels), "0 or 1 for each choice")
    if 1 not in row["mc2_targets"]["labels"]:
        raise RowError("mc2_targets.labels", "no 1", "a true choice")


def _gsm8k(row: Row) -> None:
    _text(row, "question")
    if "#### " not in _text(row, "answer"):
        raise RowError("answer", describe(row["answer"]), "a text with its result after ####")


def _ifeval(row: Row) -> None:
    _text(row, "prompt")
    if "key" not in row:
        raise RowError("key", "nothing", "the number of the prompt")
    names = _texts(row.get("instruction_id_list"), "instruction_id_list")
    arguments = list_of(row.get("kwargs"), "kwargs")
    if len(arguments) != len(names):
        raise RowError("kwargs", f"{len(arguments)} items", f"{len(names)}, one an instruction")


CHECKS: dict[str, Callable[[Row], None]] = {
    "mmlu": _mmlu,
    "arc": _arc,
    "truthfulqa": _truthfulqa,
    "hellaswag": _hellaswag,
    "gsm8k": _gsm8k,
    "ifeval": _ifeval,
}
"""By task: raises RowError where a row is none of its items."""
