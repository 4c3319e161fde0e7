"""Rows as people bring them, bad ones and all, for a prepare stage; and what it leaves of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayward.data.records import Conversation, Prompt, Ranking
from rayward.pipelines.rows.prompts import prompt_key
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.splitting import FILES
from rayward.pipelines.run.files import read_json
from rayward.pipelines.run.folder import Run

LISTS = {
    "conversations": ("conversations", "sft_heldout"),
    "preferences": ("rankings", "heldout", "judge", "labelled", "labelled_heldout"),
    "prompts": ("prompts",),
    "evaluation_prompts": ("evaluation_prompts",),
}
TRAINING = (
    "conversations",
    "sft_heldout",
    "rankings",
    "heldout",
    "judge",
    "labelled",
    "labelled_heldout",
    "prompts",
)
LONG = "very " * 300 + "long?"


def chat(*said: str) -> dict[str, Any]:
    return {
        "conversations": [
            {"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)
        ]
    }


def alpaca(question: str, answer: Any = "An answer.") -> dict[str, Any]:
    return {"instruction": question, "input": "", "output": answer}


def hh(question: str, better: str = "good", worse: str = "bad") -> dict[str, Any]:
    start = f"\n\nHuman: {question}\n\nAssistant: "
    return {"chosen": start + better, "rejected": start + worse}


def nectar(question: str, answers: int = 3, **more: Any) -> dict[str, Any]:
    ranked = [{"answer": f"answer {rank}", "rank": rank} for rank in range(1, answers + 1)]
    return {"prompt": f"\n\nHuman: {question}\n\nAssistant: ", "answers": ranked, **more}


def label(question: str, good: Any, answer: str = "An answer.") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}]
    return {"kind": "labelled", "turns": turns, "answer": answer, "good": good}


def asked(question: str, answer: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages if answer else messages[:1]}


EVALUATION = [f"Evaluation question {i}?" for i in range(20)]
SOURCES: dict[str, dict[str, list[Any]]] = {
    "conversations": {
        "sharegpt.jsonl": [
            *(chat(f"Chat {i}?", f"Reply {i}.", "And then?", "Then this.") for i in range(100)),
            "{broken",
            {"conversations": [{"from": "alien", "value": "x"}]},
            chat("alone"),
            chat("q", " "),
            {
                "conversations": [
                    {"from": "gpt", "value": "...so"},
                    *chat("Piece?", "Yes.")["conversations"],
                ]
            },
            # Its first question is an evaluation prompt below.
            chat("First?", "Yes.", "Second?", "No."),
            chat("Long?", "word " * 300),
            chat(f"Too {LONG}", "Too late."),
        ],
        "alpaca.json": [
            *(alpaca(f"Instruction {i}.") for i in range(60)),
            alpaca("No output", None),
            alpaca("Wrong type", 3),
            alpaca(f"  {EVALUATION[3]}\n"),
            alpaca(EVALUATION[4]),
        ],
        "openai.jsonl": [
            *(asked(f"Message {i}?", "Fine.") for i in range(20)),
            asked("No answer?"),
            asked("None?"),
        ],
    },
    "preferences": {
        "hh.jsonl": [
            *(hh(f"Human {i}?") for i in range(60)),
            hh("a") | {"rejected": hh("b")["rejected"]},
            {"chosen": "x", "rejected": "y"},
            hh(EVALUATION[5]),
            hh("Short?", "word " * 300, "b"),
        ],
        "nectar.jsonl": [
            *(nectar(f"Ranked {i}?") for i in range(60)),
            nectar("One?", 1),
            nectar("Number?", num_responses=7),
            nectar(EVALUATION[5]),
            nectar(f"Too {LONG}"),
        ],
        "labels.jsonl": [
            *(label(f"Labelled {i}?", i % 3 == 0, f"Answer {i}.") for i in range(40)),
            *(label(f"Human {i}?", False, "Rude.") for i in range(20)),
            label("No label?", "yes"),
            label(EVALUATION[5], True),
            label("Short?", True, "word " * 300),
        ],
    },
    "prompts": {
        "openai.jsonl": [
            *(asked(f"Prompt {i}?") for i in range(40)),
            asked("Prompt 0?"),
            asked(" Prompt 1? "),
            asked(f"Too {LONG}"),
            asked(EVALUATION[6]),
            asked(""),
            asked("Chat?", "Yes."),
        ],
        "hh.jsonl": [hh(f"Human {i}?") for i in range(5)],
    },
    "evaluation_prompts": {
        "alpaca_eval.json": [
            *({"instruction": text, "dataset": "own"} for text in EVALUATION),
            {"instruction": EVALUATION[0], "dataset": "own"},
            {"instruction": None, "dataset": "own"},
            {"instruction": LONG, "dataset": "own"},
            {"instruction": "First?", "dataset": "own"},
        ],
        # The second question of a chat above, asked as it is there.
        "openai.jsonl": [
            {
                "messages": [
                    *asked("Chat 5?", "Reply 5.")["messages"],
                    *asked("And then?")["messages"],
                ]
            }
        ],
    },
}


def write(
    folder: Path, sources: dict[str, dict[str, list[Any]]]
) -> dict[str, list[dict[str, str]]]:
    """Write the rows in folders by list; the lists of sources for a config."""
    for name, files in sources.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, rows in files.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
            text = "[" + ",\n".join(lines) + "]" if file.endswith(".json") else "\n".join(lines)
            (folder / name / file).write_text(text, encoding="utf-8")
    return {name: [{"path": f"{name}/{file}"} for file in files] for name, files in sources.items()}


def records(run: Run, name: str) -> list[Any]:
    return load_records(run.folder / "prepare" / f"{name}.jsonl")


def prompt_of(record: Conversation | Ranking | Prompt) -> str:
    """The key of a record's first prompt, whatever its kind."""
    end = next(
        (i for i, turn in enumerate(record.turns) if turn.role == "assistant" and i),
        len(record.turns),
    )
    return prompt_key(record.turns[: end if isinstance(record, Conversation) else None])


def prefixes(record: Conversation | Ranking | Prompt) -> set[str]:
    return {
        prompt_key(record.turns[: i + 1])
        for i, turn in enumerate(record.turns)
        if turn.role == "user"
    }


def check_account(run: Run) -> dict[str, Any]:
    """Every row read is a record, or rejected, or of no use; every record is in a file, or dropped
    by a rule.
    """
    report = read_json(run.folder / "prepare" / "report.json")
    for name, files in LISTS.items():
        made = 0
        for source in getattr(run.config.data, name):
            entry = report["sources"][name][source.path]
            assert entry["read"] == entry["kept"] + sum(entry["rejected"].values()) > 0
            of_no_use = sum(count for rule, count in entry.items() if "is no use" in rule)
            assert entry["kept"] == entry["records"] + of_no_use
            made += entry["records"]
        lost = sum(
            count
            for file in files
            for rule, count in report["rules"].get(file, {}).items()
            if rule[:5] != "kept,"
        )
        further = sum(
            report["rules"].get(file, {}).get("kept, further segments", 0) for file in files
        )
        assert made + further == lost + sum(report["kept"][file] for file in files), name
    manifest = run.manifest("prepare")["metrics"]
    for file in FILES:
        assert len(records(run, file)) == report["kept"][file] == manifest[file]
    rejected = sum(
        sum(entry["rejected"].values())
        + sum(count for rule, count in entry.items() if "is no use" in rule)
        for files in report["sources"].values()
        for entry in files.values()
    )
    assert len(report["rejected_rows"]) == rejected
    return report
