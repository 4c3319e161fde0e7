"""`rayward judge answers` and `pairwise` with a model folder in a real vLLM server of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONTEXT = 4096  # the tiny tokenizer makes a token of nearly every letter


@pytest.fixture(scope="module")
def folder(random_llama: Callable[..., Path]) -> Path:
    """A random Llama whose context holds a judge's prompt."""
    return random_llama(CONTEXT)


def greedy(folder: Path, turns: list[str], answers: list[str], count: int) -> str:
    """The next answer by transformers alone, from the tokenizer's own template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    said = []
    for number, turn in enumerate(turns):
        said.append({"role": "user", "content": turn})
        if number < len(answers):
            said.append({"role": "assistant", "content": answers[number]})
    row = tokenizer.apply_chat_template(
        said, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    made = model.generate(row, do_sample=False, max_new_tokens=count, pad_token_id=0)
    text: str = tokenizer.decode(made[0, row.shape[1] :], skip_special_tokens=True)
    return text.strip()


def whole(text: str) -> str:
    """Without the characters that the last tokens began: vLLM waits for the rest of them."""
    return re.sub(r"[\s\ufffd]+$", "", text).strip()


def test_a_folder_answers_in_its_template_and_judges_its_answers(
    folder: Path, tmp_path: Path, capsys: Any
) -> None:
    questions = [
        {"question_id": n, "category": "math", "turns": [f"What is {n} + {n}?", "Sure?"]}
        for n in range(6)
    ]
    path = tmp_path / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    greedily = ["--model-request", '{"max_tokens": 12, "temperature": 0}']
    serving = ["--context-tokens", str(CONTEXT), "--start-timeout", "300"]
    serving += ["--vllm", "--dtype float32"]  # of itself vLLM rounds such a model to bfloat16
    command = ["judge", "answers", str(folder), "--suite", "mt_bench", "--data", str(tmp_path)]
    command += [*greedily, *serving]
    assert main([*command, "--out", str(tmp_path / "own"), "--name", "own"]) == 0
    assert "6 of 6 questions answered, template: tokenizer" in capsys.readouterr().out
    rows = [json.loads(x) for x in (tmp_path / "own" / "own.jsonl").read_text().splitlines()]
    for row, question in zip(rows, questions, strict=True):
        turns = row["choices"][0]["turns"]
        assert whole(turns[0]) == whole(greedy(folder, question["turns"][:1], [], 12))
        assert whole(turns[1]) == whole(greedy(folder, question["turns"], turns[:1], 12))
    missing = ["--template", "vicuna_v1.1", "--out", str(tmp_path / "none")]
    assert main([*command, *missing]) == 2
    assert "vicuna_v1.1 needs the token '</s>'" in capsys.readouterr().err
    shorter = ["--model-request", '{"max_tokens": 5, "temperature": 0}', "--name", "other"]
    assert main([*command, *shorter, "--out", str(tmp_path / "other")]) == 0
    summary = json.loads((tmp_path / "other" / "summary.json").read_text())
    assert (summary["template"], summary["answered"], summary["cut"]) == ("tokenizer", 6, 6)
    # vLLM holds the judge to one of the letters, so a random model gives real verdicts.
    letters = {"max_tokens": 8, "structured_outputs": {"choice": ["[[A]]", "[[B]]", "[[C]]"]}}
    judge = ["judge", "pairwise", str(tmp_path / "own" / "own.jsonl")]
    judge += [str(tmp_path / "other" / "other.jsonl"), "--questions", str(path)]
    judge += ["--rules", "mt_bench", "--judge", str(folder), "--out", str(tmp_path / "judged")]
    judge += ["--judge-request", json.dumps(letters), *serving]
    assert main(judge) == 0
    made = json.loads((tmp_path / "judged" / "summary.json").read_text())
    assert made["comparisons"] == 12 and made["unreadable"] == made["missing"] == 0
    # All is in the cache, so no server starts.
    started = time.monotonic()
    assert main(judge) == 0 and time.monotonic() - started < 10
    again = json.loads((tmp_path / "judged" / "summary.json").read_text())
    assert again["asked"]["this_run"]["requests"] == 0 and again["win_rate"] == made["win_rate"]
