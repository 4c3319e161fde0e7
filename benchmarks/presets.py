"""The presets of single parts (rm_smollm2, dpo_smollm2, rloo_rule_smollm2), run or read, and what
each reached.

python benchmarks/presets.py --model DIR --data DIR --runs runs/parts
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rayward.algorithms.winrate import bootstrap_interval

PRESETS = ("rm_smollm2", "dpo_smollm2", "rloo_rule_smollm2")


def main() -> None:
    """Run, collect, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the files that the presets name"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/parts"))
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--only", choices=PRESETS, nargs="+", default=PRESETS)
    options = parser.parse_args()
    places = [
        f"model.path={options.model.resolve()}",
        f"data.root={options.data.resolve()}",
        f"seed={options.seed}",
    ]
    print("| preset | minutes | GiB | figure |\n|---|---|---|---|")
    for name in options.only:
        folder = options.runs / name
        settings = [part for place in places for part in ("--set", place)]
        command = [
            sys.executable,
            "-m",
            "rayward.pipelines.cli",
            "align",
            name,
            "--run",
            str(folder),
            *settings,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        summary = json.loads((folder / "summary.json").read_text())
        minutes, memory = summary["seconds"]["total"] / 60, summary["peak_memory_bytes"] / 2**30
        told = (
            rewards(folder)
            if "rl" in summary
            else accuracy(summary["reward" if "reward" in summary else "dpo"])
        )
        print(f"| `{name}` | {minutes:.1f} | {memory:.1f} | {told} |", flush=True)


def accuracy(figures: dict[str, Any]) -> str:
    """Held-out pair accuracy with its interval."""
    of = figures
    pairs = (
        f"{of['pair_accuracy']:.3f} [{of['accuracy_low']:.3f}, {of['accuracy_high']:.3f}] of "
        f"{of['heldout_pairs']}"
    )
    kept = f"state of step {of['kept_step']} of {of['optimizer_steps']}"
    return f"held-out pairs {pairs}, the longer answer {of['length_baseline']:.3f}; {kept}"


def rewards(folder: Path) -> str:
    """Mean reward of the answers of the first and of the last two iterations, each with its 95 %
    interval.
    """
    files = sorted((folder / "rl" / "rloo" / "transcripts").glob("*.jsonl"))
    told = []
    for some in (files[:2], files[-2:]):
        scores = np.array(
            [json.loads(line)["score"] for file in some for line in file.read_text().splitlines()]
        )
        low, high = bootstrap_interval(scores, 10000, 0)
        told.append(f"{scores.mean():.3f} [{low:.3f}, {high:.3f}]")
    return (
        f"reward of the first two iterations {told[0]}, of the last two {told[1]}; {len(files)} "
        "iterations"
    )


if __name__ == "__main__":
    main()
