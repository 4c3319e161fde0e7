"""A row of each format and the record that it is; writing rows, and reading them with their
account.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

from rayward.data.formats.files.containers import sources
from rayward.data.formats.registry import Report, _detect, read
from rayward.data.records import Conversation, Labelled, Preference, Prompt, Ranking, Turn
from tests.data.layout_examples import LAYOUT_RECORDS, LAYOUT_ROWS

ROWS = {
    "sharegpt": {
        "id": "a_0",
        "model": "Model: GPT-4",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello!"},
        ],
    },
    "alpaca": {"instruction": "Classify.", "input": "cat", "output": "animal"},
    "hh_rlhf": {
        "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: bad",
    },
    "nectar": {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "num_responses": 3,
        "source": ["sharegpt"],
        "answers": [
            {"answer": "C", "model": "x", "rank": 2.0},
            {"answer": "A", "rank": 1},
            {"answer": "B", "model": "z", "rank": 1.0},
        ],
    },
    "openai": {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello!", "weight": 1},
        ]
    },
    "alpaca_eval": {
        "instruction": "Why?",
        "output": "Because.",
        "generator": "m",
        "dataset": "helpful_base",
    },
    "ultrachat": {"id": "0", "data": ["q", "a", "r", "b"]},
    "ultra_eval": {"class": " Vicuna ", "data": "Why?"},
    "crlft": {
        "items": [
            {"role": "user", "content": "q", "weight": 0.0},
            {"role": "assistant", "content": "a", "weight": 0.1},
        ],
        "condition": "GPT3",
        "system": "",
    },
    "ultrafeedback": {
        "source": "flan",
        "instruction": "q",
        "completions": [
            {
                "response": "C",
                "annotations": {"honesty": {"Rating": "1"}, "helpfulness": {"Rating": "N/A"}},
            },
            {
                "response": "A",
                "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "4"}},
            },
            {
                "response": "B",
                "annotations": {"honesty": {"Rating": "4"}, "helpfulness": {"Rating": "5"}},
            },
        ],
    },
    "mt_bench_questions": {"question_id": 81, "category": "math", "turns": ["q", "r"]},
    "mt_bench_answers": {
        "question_id": 81,
        "model_id": "m",
        "choices": [{"index": 0, "turns": ["a", "b"]}],
    },
    "rewardbench": {
        "id": 3,
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "subset": "donotanswer",
    },
    "rm_bench": {
        "id": 4,
        "prompt": "q",
        "chosen": ["a", "b", "c"],
        "rejected": ["d", "e", "f"],
        "domain": "chat",
    },
    "rayward": {"kind": "prompt", "turns": [{"role": "user", "content": "Hi"}], "id": "7"},
    "self_instruct": {
        "id": "t",
        "instruction": "Add.",
        "instances": [{"input": "1 2", "output": "3"}],
    },
    "gsm8k": {"question": "1 + 1?", "answer": "#### 2"},
    "kto": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "label": True,
    },
    "prompt_completion": {"prompt": "q", "completion": "a", "id": "p"},
    "prompts": {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": "1+1?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    },
    "orca": {"id": "n", "system_prompt": "Be brief.", "question": "q", "response": "a"},
    "conversation": {
        "source": "x",
        "conversation": [{"input": "q", "output": "a"}, {"input": "r", "output": "b"}],
    },
    "question_pairs": {"system": "Be brief.", "question": "q", "chosen": "a", "rejected": "b"},
    "sharegpt_pairs": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "pandalm": {
        "idx": 5,
        "instruction": "Add.",
        "input": "1 2",
        "response1": "4",
        "response2": "3",
        "annotator1": 2,
        "annotator2": 1,
        "annotator3": 2,
    },
    "gsm8k_solutions": {
        "question": "1 + 1?",
        "ground_truth": "A: 2",
        "6b": {"is_correct": False, "solution": "A: 3"},
        "175b": {"is_correct": True, "solution": "So A: 2"},
    },
    "starling_truthful": {
        "question_id": 4,
        "prompt": "q",
        "response_a": "a",
        "response_b": "c",
        "response_c": "b",
    },
    "starling_verbose": {"prompt": "q", "response_a": "long", "response_b": "short"},
    "arena": {
        "question_id": "x",
        "prompt": "q",
        "response_a": "b",
        "response_b": "a",
        "winner": "model_b",
    },
    "alpaca_eval_annotations": {
        "instruction": "q",
        "output_1": "a",
        "output_2": "b",
        "preference": 1.2,
    },
}
FOUR = (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r"), Turn("assistant", "b"))
RECORDS = {
    "sharegpt": Conversation(
        (Turn("system", "Be brief."), Turn("user", "Hi"), Turn("assistant", "Hello!")),
        "sharegpt",
        "a_0",
        "Model: GPT-4",
    ),
    "alpaca": Conversation(
        (Turn("user", "Classify.\n\n### Input:\ncat"), Turn("assistant", "animal")), "alpaca"
    ),
    "self_instruct": Conversation(
        (Turn("user", "Add.\n\n### Input:\n1 2"), Turn("assistant", "3")), "self_instruct", "t"
    ),
    "gsm8k": Conversation((Turn("user", "1 + 1?"), Turn("assistant", "#### 2")), "gsm8k"),
    "kto": Labelled((Turn("user", "q"),), "a", True, "kto"),
    "prompt_completion": Conversation(
        (Turn("user", "q"), Turn("assistant", "a")), "prompt_completion", "p"
    ),
    "prompts": Prompt((Turn("user", "1+1?"),), "prompts/gsm8k", reference="2"),
    "orca": Conversation(
        (Turn("system", "Be brief."), Turn("user", "q"), Turn("assistant", "a")), "orca", "n"
    ),
    "conversation": Conversation(FOUR, "conversation/x"),
    "question_pairs": Preference(
        (Turn("system", "Be brief."), Turn("user", "q")), "a", "b", None, "question_pairs"
    ),
    "sharegpt_pairs": Preference((Turn("user", "q"),), "a", "b", None, "sharegpt_pairs"),
    "pandalm": Preference(
        (Turn("user", "Add.\n\n### Input:\n1 2"),), "3", "4", None, "pandalm", "5"
    ),
    "gsm8k_solutions": Ranking(
        (Turn("user", "1 + 1?"),),
        ("A: 2", "So A: 2", "A: 3"),
        "gsm8k_solutions",
        "",
        (1.0, 1.0, 3.0),
    ),
    "starling_truthful": Ranking(
        (Turn("user", "q"),), ("a", "b", "c"), "starling/truthful", "4", (1.0, 1.0, 3.0)
    ),
    "starling_verbose": Ranking(
        (Turn("user", "q"),), ("short", "long"), "starling/verbose", "", (1.0, 2.0)
    ),
    "arena": Preference((Turn("user", "q"),), "a", "b", None, "arena", "x"),
    "alpaca_eval_annotations": Preference((Turn("user", "q"),), "a", "b", None, "alpaca_eval"),
    "hh_rlhf": Preference(
        (Turn("user", "q"), Turn("assistant", "a"), Turn("user", "r")),
        "good",
        "bad",
        None,
        "hh_rlhf",
    ),
    "nectar": Ranking((Turn("user", "Hi"),), ("A", "B", "C"), "sharegpt", "", (1.0, 1.0, 2.0)),
    "openai": Conversation((Turn("user", "Hi"), Turn("assistant", "Hello!", 1.0)), "openai"),
    "alpaca_eval": Conversation(
        (Turn("user", "Why?"), Turn("assistant", "Because.")), "alpaca_eval", quality="m"
    ),
    "ultrachat": Conversation(FOUR, "ultrachat", "0"),
    "ultra_eval": Prompt((Turn("user", "Why?"),), "ultra_eval/Vicuna"),
    "crlft": Conversation(
        (Turn("user", "q", 0.0), Turn("assistant", "a", 0.1)), "crlft", "", "GPT3"
    ),
    "ultrafeedback": Ranking(
        (Turn("user", "q"),), ("A", "B", "C"), "ultrafeedback/flan", "", (1.0, 1.0, 3.0)
    ),
    "mt_bench_questions": Prompt((Turn("user", "q"),), "mt_bench/math", "81", ("r",)),
    "mt_bench_answers": Conversation(FOUR, "mt_bench", "81", "m"),
    "rewardbench": Preference((Turn("user", "q"),), "a", "b", None, "rewardbench/donotanswer", "3"),
    "rm_bench": Ranking(
        (Turn("user", "q"),), tuple("abcdef"), "rm_bench/chat", "4", (1.0,) * 3 + (4.0,) * 3
    ),
    "rayward": Prompt((Turn("user", "Hi"),), "", "7"),
}
ROWS |= LAYOUT_ROWS
RECORDS |= LAYOUT_RECORDS


WORDS = (
    *(
        "é",
        "日本語",
        "😀",
        "a",
        "\\",
        '"',
        "]",
        "}",
        ",",
        "[{",
        "\u2028",
        "\\u0041",
        "\n",
        "\t",
        " ",
    ),
    *("Human:", "</s>"),
)
"""What text is made of that formats, containers and templates could stumble over."""


def random_text(rng: random.Random, words: int) -> str:
    """Fewer than so many of them, after a letter."""
    return "x" + "".join(rng.choice(WORDS) for _ in range(rng.randrange(words)))


def write_lines(path: Path, rows: list, opener=open, newline: str = "\n") -> Path:
    with opener(path, "wb") as file:
        file.write(newline.join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    return path


def write_array(path: Path, rows: list, opener=open, indent: int | None = None) -> Path:
    with opener(path, "wb") as file:
        file.write(json.dumps(rows, ensure_ascii=False, indent=indent).encode())
    return path


def detect(path: str | Path) -> str:
    """The format that "auto" finds in a file, a data set, or a folder's first file with rows."""
    for source in sources(path):
        if found := _detect(source):
            return found.name
    raise ValueError(f"{path}: no row that is a JSON object")


def run(path: Path, format: str = "auto") -> tuple[list, Report]:
    report = Report()
    records = list(read(path, format, report))
    assert report.read == report.kept + report.rejected.total()
    assert len(report.rejected_rows) == report.rejected.total()
    assert Counter(row.reason for row in report.rejected_rows) == report.rejected
    json.dumps(report.as_dict())
    return records, report
