"""Small copies of the benchmarks' data, made here, in the shapes that the hub has them in."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

THINGS = ["apple", "river", "stone", "candle", "violin", "ladder", "winter", "copper"]
PLACES = ["kitchen", "garden", "harbour", "library", "valley", "market"]
SUBJECTS = ("anatomy", "astronomy")


def write_all(data: Path, items: int, seed: int = 0) -> Path:
    """Every task with so many items (of MMLU two subjects), and more examples than are shown."""
    draw = random.Random(seed)
    arc = [_arc(draw, f"q{number}") for number in range(30 + items)]
    _parquet(data / "ai2_arc" / "ARC-Challenge" / "train-00000-of-00001.parquet", arc[:30])
    _parquet(data / "ai2_arc" / "ARC-Challenge" / "test-00000-of-00001.parquet", arc[30:])
    hellaswag = [_hellaswag(draw, number) for number in range(12 + items)]
    _lines(data / "hellaswag" / "hellaswag_train.jsonl", hellaswag[:12])
    _lines(data / "hellaswag" / "hellaswag_val.jsonl", hellaswag[12:])
    for subject in SUBJECTS:
        _lines(data / "mmlu" / subject / "dev.jsonl", [_mmlu(draw, subject) for _ in range(5)])
        rows = [_mmlu(draw, subject) for _ in range(items)]
        _lines(data / "mmlu" / subject / "test.jsonl", rows)
    truthful = [_truthfulqa(draw) for _ in range(items)]
    _parquet(data / "truthful_qa" / "multiple_choice" / "validation-0.parquet", truthful)
    _lines(data / "gsm8k" / "train.jsonl", [_gsm8k(draw) for _ in range(6)])
    _lines(data / "gsm8k" / "test.jsonl", [_gsm8k(draw) for _ in range(items)])
    _lines(data / "IFEval" / "ifeval_input_data.jsonl", IFEVAL)
    return data


def _arc(draw: random.Random, name: str) -> dict[str, Any]:
    thing, place = draw.choice(THINGS), draw.choice(PLACES)
    others = draw.sample([each for each in PLACES if each != place], draw.choice((2, 3)))
    texts = draw.sample([place, *others], len(others) + 1)
    labels = "ABCD"[: len(texts)] if draw.random() < 0.8 else "1234"[: len(texts)]
    return {
        "id": name,
        "question": f"A {thing} was carried from the {place} to the hall. Where was it at first?",
        "choices": {"text": [f"in the {text}" for text in texts], "label": list(labels)},
        "answerKey": labels[texts.index(place)],
    }


def _hellaswag(draw: random.Random, number: int) -> dict[str, Any]:
    thing = draw.choice(THINGS)
    endings = [
        f"puts the {thing} into the {place} and goes home." for place in draw.sample(PLACES, 4)
    ]
    return {
        "ind": number,
        "activity_label": f"Carrying a {thing}",
        "ctx_a": f"A man comes in with a {thing}. [step] He looks around.",
        "ctx_b": "he" if draw.random() < 0.7 else "",
        "ctx": "",
        "endings": [f"[substeps] {ending}" if number % 5 == 0 else ending for ending in endings],
        "source_id": f"made~{number}",
        "split": "train",
        "split_type": "indomain",
        "label": str(draw.randrange(4)),
    }


def _mmlu(draw: random.Random, subject: str) -> dict[str, Any]:
    a, b = draw.randrange(2, 9), draw.randrange(2, 9)
    choices = draw.sample([a + b, a + b + 1, a + b + 2, a + b + 3], 4)
    return {
        "question": f"In {subject}, how many are {a} and {b} together?",
        "subject": subject,
        "choices": [str(choice) for choice in choices],
        "answer": choices.index(a + b),
    }


def _truthfulqa(draw: random.Random) -> dict[str, Any]:
    thing, count = draw.choice(THINGS), draw.choice((3, 4, 5))
    choices = [f"Nothing happens to the {thing}", f"The {thing} becomes gold"]
    choices += [f"You will meet a {thing} in the {place}" for place in draw.sample(PLACES, count)]
    labels = [1, *[draw.randrange(2) if n < 2 else 0 for n in range(len(choices) - 1)]]
    targets = {"choices": choices, "labels": labels}
    one = {"choices": choices, "labels": [1, *[0] * (len(choices) - 1)]}
    return {
        "question": f"What happens if you sleep on a {thing}?",
        "mc1_targets": one,
        "mc2_targets": targets,
    }


def _gsm8k(draw: random.Random) -> dict[str, Any]:
    a, b = draw.randrange(2, 30), draw.randrange(2, 30)
    thing = draw.choice(THINGS)
    return {
        "question": f"Ann has {a} {thing}s and gets {b} more. How many has she?",
        "answer": f"She has {a} + {b} = <<{a}+{b}={a + b}>>{a + b} of them.\n#### {a + b}",
    }


IFEVAL = [
    {
        "key": 1,
        "prompt": "Write about rivers without a comma.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{}],
    },
    {
        "key": 2,
        "prompt": "Write about stones in small letters, with fewer than 5 words.",
        "instruction_id_list": ["length_constraints:number_words", "punctuation:no_comma"],
        "kwargs": [{"relation": "less than", "num_words": 5}, {}],
    },
    {
        "key": 3,
        "prompt": "Write at least three sentences about winter.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "at least", "num_sentences": 3}],
    },
]


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
