"""Prepare at growing numbers of rows: peak memory, tokens a second, and a plain `datasets.map`.

    python benchmarks/prepare_scale.py --json FILE [--rows 10000 30000 100000] [--model FOLDER]

Rows are conversations of two questions and answers in generated text, `--tokens` tokens each.
Measured is all of stage prepare on `--cores` cores: reading and checking, dividing, tokenising, the
files of records and of token rows; and once on one core. The peer is what a script would do in its
place: `load_dataset("json")` and `map` in batches with the same tokenizer and its chat template,
tried with a process a core and with the tokenizer's own threads; the faster one counts. Each
measurement has a process of its own; imports are not in it, the start of further processes is.
`--model`: a folder with a tokenizer and config.json; without it a tokenizer of 16,384 tokens
is trained on such text.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = "chatml"
SYLLABLES = "ba con de er fi gra ho in ja kle lo ment nu or pra qui re sti ta un ver wor xi yon zen"


def main() -> None:
    options = arguments()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return
    with tempfile.TemporaryDirectory(prefix="prepare-scale-", dir=options.work) as work:
        folder = Path(work)
        model = options.model or own_model(folder / "model")
        measure(options, folder, model)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--tokens", type=int, default=1000, help="of a row, about")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="of each side, in turn")
    parser.add_argument("--model", type=Path, help="folder with a tokenizer and config.json")
    parser.add_argument("--work", type=Path, help="where temporary files go")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path, model: Path) -> None:
    figures: dict[str, Any] = {
        name: [] for name in ("rows", "peak_memory_bytes", "tokens_per_s", "seconds")
    }
    words_of_row = words_for(model, options.tokens)
    repeats: dict[str, list[float]] = {"prepare": [], "one_core": [], "datasets_map": []}
    for rows in sorted(options.rows):
        data = folder / f"{rows}.jsonl"
        write_rows(data, rows, words_of_row)
        last = rows == max(options.rows)
        # The two sides in turn, so that what else the machine does meets both.
        for _ in range(options.repeats if last else 1):
            ours = part("prepare", options, folder, model, data, options.cores)
            told(rows, "prepare", ours)
            if last:
                repeats["prepare"].append(ours["tokens_per_s"])
                for kind in ("map_processes", "map_threads"):
                    peer = part(kind, options, folder, model, data, options.cores)
                    told(rows, kind, peer)
                    repeats.setdefault(kind, []).append(peer["tokens_per_s"])
                alone = part("prepare", options, folder, model, data, 1)
                told(rows, "prepare on one core", alone)
                repeats["one_core"].append(alone["tokens_per_s"])
        figures["rows"].append(rows)
        rate = float(np.median(repeats["prepare"])) if last else ours["tokens_per_s"]
        figures["tokens_per_s"].append(rate)
        figures["peak_memory_bytes"].append(ours["peak_memory_bytes"])
        figures["seconds"].append(ours["seconds"])
        data.unlink()
    peers = {kind: float(np.median(repeats[kind])) for kind in ("map_processes", "map_threads")}
    figures["datasets_map_tokens_per_s"] = max(peers.values())
    figures["datasets_map_by_kind"] = peers
    figures["one_core_tokens_per_s"] = float(np.median(repeats["one_core"]))
    figures["speedup"] = figures["tokens_per_s"][-1] / figures["one_core_tokens_per_s"]
    figures["repeats"] = {name: values for name, values in repeats.items() if values}
    figures |= {"cores": options.cores, "tokens_of_a_row": options.tokens, "model": str(model)}
    text = json.dumps(figures, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


def told(rows: int, what: str, figures: dict[str, Any]) -> None:
    print(
        f"{rows} rows, {what}: {figures['tokens']} tokens in {figures['seconds']:.1f} s "
        f"({figures['cpu_s']:.1f} of cores), "
        f"{figures['tokens_per_s']:,.0f} a second, "
        f"peak {figures['peak_memory_bytes'] / 2**20:,.0f} MiB",
        flush=True,
    )


def part(
    name: str, options: argparse.Namespace, folder: Path, model: Path, data: Path, cores: int
) -> dict[str, Any]:
    """The figures of one measurement, in a process that has so many cores."""
    chosen = sorted(os.sched_getaffinity(0))[:cores]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [sys.executable, __file__, "--part", name, "--model", str(model)]
        command += ["--work", work, "--data", str(data), "--cores", str(cores)]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            env=os.environ | {"HF_DATASETS_CACHE": f"{work}/cache", "HF_HUB_OFFLINE": "1"},
            preexec_fn=lambda: os.sched_setaffinity(0, chosen),
            check=True,
            text=True,
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures | {"tokens_per_s": figures["tokens"] / figures["seconds"]}


# ---- what is measured


def prepare_part(options: argparse.Namespace) -> dict[str, Any]:
    import yaml
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401 - imports are not measured
    from transformers import AutoTokenizer  # noqa: F401

    from rayward.configs.load import load
    from rayward.data.token_columns import MappedRows
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.memory import PeakMemory
    from rayward.pipelines.stages.prepare import prepare

    stages = ("reward", "sample", "rl", "dpo", "evaluate", "publish")
    text = yaml.safe_dump(
        {
            "name": "scale",
            "model": {"path": str(options.model), "template": TEMPLATE, "context_tokens": 4096},
            "data": {
                "root": str(options.data.parent),
                "conversations": [{"path": options.data.name}],
            },
            **dict.fromkeys(stages),
        }
    )
    path = options.work / "config.yaml"
    path.write_text(text, encoding="utf-8")
    run = Run(options.work / "run", load(str(path)))
    with PeakMemory() as memory:
        started_at, cpu_before_s = time.perf_counter(), cpu_s()
        prepare(run)
        seconds = time.perf_counter() - started_at
    tokens = sum(
        int(MappedRows(run.folder / "prepare" / f"{name}.arrow", "ids").lengths.sum())
        for name in ("conversations", "sft_heldout")
    )
    return {
        "tokens": tokens,
        "seconds": seconds,
        "cpu_s": cpu_s() - cpu_before_s,
        "peak_memory_bytes": memory.peak_bytes,
    }


def cpu_s() -> float:
    """Seconds of all cores, of this process and those below it that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def map_part(options: argparse.Namespace, processes: int | None) -> dict[str, Any]:
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if processes is None else "false"
    from datasets import load_dataset
    from transformers import AutoTokenizer

    from rayward.pipelines.run.memory import PeakMemory

    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in batch["messages"]]
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    with PeakMemory() as memory:
        started_at, cpu_before_s = time.perf_counter(), cpu_s()
        rows = load_dataset("json", data_files=str(options.data), split="train")
        rows = rows.map(encode, batched=True, num_proc=processes, remove_columns=["messages"])
        seconds = time.perf_counter() - started_at
    tokens = int(np.sum(rows["length"][:]))
    return {
        "tokens": tokens,
        "seconds": seconds,
        "cpu_s": cpu_s() - cpu_before_s,
        "peak_memory_bytes": memory.peak_bytes,
    }


PARTS = {
    "prepare": prepare_part,
    "map_processes": lambda options: map_part(options, options.cores),
    "map_threads": lambda options: map_part(options, None),
}


# ---- what it is measured on


def words(rng: random.Random) -> list[str]:
    """50,000 words of one to five syllables."""
    syllables = SYLLABLES.split()
    return [
        "".join(rng.choices(syllables, k=rng.choice((1, 1, 2, 2, 3, 4, 5)))) for _ in range(50_000)
    ]


def texts(rng: random.Random, vocabulary: list[str], count: int, length: int) -> list[str]:
    """Texts of `length` words, the frequent ones as frequent as in a language (Zipf)."""
    ranks = np.random.default_rng(rng.getrandbits(32)).zipf(1.2, size=(count, length))
    return [
        " ".join(
            vocabulary[rank % len(vocabulary)] + (". " if place % 13 == 12 else "")
            for place, rank in enumerate(row)
        )
        for row in ranks.tolist()
    ]


def write_rows(path: Path, rows: int, words_of_row: int) -> None:
    rng = random.Random(0)
    vocabulary = words(rng)
    asked, answered = words_of_row // 8, 3 * words_of_row // 8
    with path.open("w", encoding="utf-8") as file:
        for row in range(rows):
            questions = texts(rng, vocabulary, 2, asked)
            answers = texts(rng, vocabulary, 2, answered)
            turns = [
                {"role": role, "content": content}
                for pair in zip(questions, answers, strict=True)
                for role, content in zip(("user", "assistant"), pair, strict=True)
            ]
            turns[0]["content"] = f"{row}: {turns[0]['content']}"
            file.write(json.dumps({"messages": turns}) + "\n")


def words_for(model: Path, tokens: int) -> int:
    """Words of a row that has so many tokens."""
    from rayward.data.templates.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model)
    rng = random.Random(1)
    sample = texts(rng, words(random.Random(0)), 20, 1000)
    read = tokenizer(sample, add_special_tokens=False)["input_ids"]
    return int(tokens * 20_000 / sum(map(len, read)))


def own_model(folder: Path) -> Path:
    """A folder with a trained tokenizer and the config of a model for it."""
    from transformers import LlamaConfig

    from rayward.data.templates.jinja import jinja
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import train_tokenizer

    template = find(TEMPLATE)
    sample = texts(random.Random(2), words(random.Random(0)), 2000, 300)
    tokenizer = train_tokenizer(sample, 16_384, template.special_tokens, 4096)
    tokenizer.chat_template = jinja(template, tokenizer)
    tokenizer.save_pretrained(folder)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
