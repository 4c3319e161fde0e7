"""What a judge is asked: prompts in the shape of FastChat's judge_prompts.jsonl.

Ours stand in prompts.jsonl, in words of our own. A person may name another file: FastChat's,
Vicuna's prompt.jsonl (without types and formats: two scores), or one prompt of AlpacaEval as a text
with its <|im_start|> marks. What stands in {braces} is filled in, {{ and }} are braces; the names
are those of these projects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rayward.data.judging.annotations import BadRow
from rayward.data.judging.questions import Question
from rayward.data.judging.source_rows import Row, rows_as
from rayward.data.records import RowError, describe, number_of, object_of, text_of

OURS = Path(__file__).parent / "prompts.jsonl"
NEED_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")
"""Categories of which FastChat shows the judge a reference answer."""
BRACES = re.compile(r"\{\{|\}\}|\{(\w+)\}")
MESSAGE = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", re.DOTALL)
TURNS = ("question", "instruction", "question_1", "question_2", "ref_answer_1", "ref_answer_2")
FIELDS = {
    "single": {*TURNS, "answer", "answer_1", "answer_2"},
    "pairwise": {
        *TURNS,
        *("answer_1", "answer_2", "output_1", "output_2"),
        *(f"answer_{side}{turn}" for side in "ab" for turn in ("", "_1", "_2")),
    },
}
"""What may be filled in, by type: answer_1 and answer_2 are of two turns, or of two models."""
FORMATS = {
    "pairwise": ("scores", "correct-first", "ranking", "m/M", "[[A]]", "[[A>>B]]"),
    "single": ("[[rating]]",),
}
"""What the reply is to hold, by type: which parser reads it."""


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A prompt for a judge. `scale`: the best score that it may give."""

    name: str
    type: str
    category: str
    output_format: str
    system: str
    template: str
    scale: float = 10
    defaults: Mapping[str, str] = field(default_factory=dict)

    @property
    def with_reference(self) -> bool:
        """Whether it shows a reference answer."""
        return "{ref_answer" in self.template

    @property
    def second_turn(self) -> bool:
        """Whether it asks about the answer to the second turn."""
        return "{question_2}" in self.template

    def messages(self, fields: Mapping[str, str]) -> list[dict[str, str]]:
        """What the judge is sent. Braces within `fields` stay as they are."""
        values = {**self.defaults, **fields}

        def value(match: re.Match[str]) -> str:
            name = match[1]
            return match[0][0] if name is None else values[name]

        user = {"role": "user", "content": BRACES.sub(value, self.template)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


def load_prompts(path: Path | None = None) -> list[JudgePrompt]:
    """Our prompts, or those of a file. ValueError, with file, line and field: a row is none."""
    path = path or OURS
    if path.suffix == ".txt":
        return [_alpaca_prompt(path)]
    bad = list[BadRow]()
    prompts = rows_as(path, _prompt, bad)
    if bad:
        raise ValueError(f"{bad[0].file}:{bad[0].line}: {bad[0].error}")
    if not prompts:
        raise ValueError(f"{path}: no prompt in it")
    return prompts


def _prompt(row: Row, number: int) -> JudgePrompt:
    kind = text_of(row.get("type", "pairwise"), "type")
    if kind not in FIELDS:
        raise RowError("type", describe(kind), "single or pairwise", "unknown type")
    defaults = {
        name: text_of(value, f"defaults.{name}")
        for name, value in object_of(row.get("defaults", {}), "defaults").items()
    }
    template = text_of(row.get("prompt_template"), "prompt_template")
    if unknown := _fields(template) - FIELDS[kind] - defaults.keys():
        raise RowError(
            "prompt_template",
            "{" + sorted(unknown)[0] + "}",
            f"some of {', '.join(sorted(FIELDS[kind]))}",
            "unknown field",
        )
    form = str(row.get("output_format") or FORMATS[kind][0])
    if form == "[[rating_a,rating_b]]":
        form = "scores"
    if form not in FORMATS[kind]:
        raise RowError(
            "output_format", describe(form), " or ".join(FORMATS[kind]), "unknown format"
        )
    return JudgePrompt(
        str(row.get("name", row.get("prompt_id", number))),
        kind,
        str(row.get("category", "general")),
        form,
        str(row.get("system_prompt") or ""),
        template,
        number_of(row.get("scale", 10), "scale"),
        defaults,
    )


def _alpaca_prompt(path: Path) -> JudgePrompt:
    """AlpacaEval's prompt.txt: messages between marks, about {instruction} and two outputs."""
    messages = dict(MESSAGE.findall(path.read_text(encoding="utf-8")))
    if "user" not in messages:
        raise ValueError(f"{path}: found no <|im_start|>user, expected a prompt of AlpacaEval")
    template = messages["user"]
    if not {"output_1", "output_2"} <= _fields(template):
        raise ValueError(f"{path}: expected {{output_1}} and {{output_2}} in what the user says")
    # Its parsers tell them apart: names of one character, or a list of dictionaries.
    form = "ranking" if "model_1" in template else "m/M"
    return JudgePrompt(path.stem, "pairwise", "general", form, messages.get("system", ""), template)


def _fields(template: str) -> set[str]:
    return {match[1] for match in BRACES.finditer(template) if match[1]}


def choose(
    prompts: Sequence[JudgePrompt],
    type: str,
    formats: Sequence[str],
    question: Question,
    turn: int,
) -> JudgePrompt | None:
    """The prompt for a turn (from 0) of a question; None where there is none for this turn.

    Of the first of `formats` that there are prompts of: one with a reference answer where its
    category needs it and it has one; that of its category before the general one.
    """
    fitting = [
        prompt for prompt in prompts if prompt.type == type and prompt.second_turn == (turn > 0)
    ]
    by_format = ([p for p in fitting if p.output_format == form] for form in formats)
    fitting = next(filter(None, by_format), [])
    wanted = needs_reference(question) and has_reference(question, turn)
    fitting = [p for p in fitting if p.with_reference == wanted] or [
        p for p in fitting if not p.with_reference
    ]
    for category in (question.category, "general"):
        for prompt in fitting:
            if prompt.category == category:
                return prompt
    return fitting[0] if fitting else None


def needs_reference(question: Question) -> bool:
    """Whether the judge is to see a right answer to it."""
    return question.category in NEED_REFERENCE


def has_reference(question: Question, turn: int) -> bool:
    """Whether there is one to this turn, and to those before it."""
    return len(question.reference) > turn and any(question.reference)


def single_fields(question: Question, answers: Sequence[str], turn: int) -> dict[str, str]:
    """What a prompt about one model's answer is filled with."""
    fields = {f"answer_{number + 1}": answer for number, answer in enumerate(answers[:2])}
    return _asked(question, turn) | fields | {"answer": answers[turn]}


def pair_fields(
    question: Question, first: Sequence[str], second: Sequence[str], turn: int
) -> dict[str, str]:
    """What a prompt about two models' answers is filled with; `first` is shown first."""
    fields = _asked(question, turn)
    for number, (side, answers) in enumerate(zip("ab", (first, second), strict=True), 1):
        fields |= dict.fromkeys((f"answer_{number}", f"output_{number}"), answers[turn])
        fields[f"answer_{side}"] = answers[turn]
        fields |= {f"answer_{side}_{place}": text for place, text in enumerate(answers[:2], 1)}
    return fields


def _asked(question: Question, turn: int) -> dict[str, str]:
    """The turns of the user, and the reference answers."""
    fields = {f"question_{number}": text for number, text in enumerate(question.turns[:2], 1)}
    fields |= {"question": question.turns[turn], "instruction": question.turns[turn]}
    references = [*question.reference[:2], "", ""][:2]
    return fields | {"ref_answer_1": references[0], "ref_answer_2": references[1]}
