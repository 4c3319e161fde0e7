"""The whole road on a published chat model and real files, for several seeds: what each stage
reached, as a table.

python benchmarks/real_road.py --model DIR --data DIR --seeds 17 18 19 --runs runs/smollm2 --ask 10

Runs the preset smollm2; a run that is finished is read, one that was interrupted goes on. `--ask`
serves the model that the last run chose and puts held-out prompts to its endpoint.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROAD = ["-m", "rayward.pipelines.cli", "align", "smollm2"]


def main() -> None:
    """Run, collect, print Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with the files that the preset names"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--runs", type=Path, default=Path("runs/smollm2"))
    parser.add_argument(
        "--ask", type=int, default=0, metavar="N", help="held-out prompts for the endpoint"
    )
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    options = parser.parse_args()
    columns: dict[int, dict[str, str]] = {}
    for seed in options.seeds:
        folder = options.runs / str(seed)
        subprocess.run(
            [sys.executable, *ROAD, *settings(options, seed), "--run", str(folder)], check=True
        )
        columns[seed] = figures(json.loads((folder / "summary.json").read_text()))
    print("| figure | " + " | ".join(f"seed {seed}" for seed in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        print(
            f"| {name} | " + " | ".join(column.get(name, "-") for column in columns.values()) + " |"
        )
    if options.ask:
        for asked, answer in answers(options, options.seeds[-1]):
            print(f"\n* {asked!r}\n  {answer!r}")


def settings(options: argparse.Namespace, seed: int) -> list[str]:
    """The options of `rayward align` for a seed."""
    given = [
        f"model.path={options.model.resolve()}",
        f"data.root={options.data.resolve()}",
        f"seed={seed}",
    ]
    return [part for setting in [*given, *options.set] for part in ("--set", setting)]


def figures(summary: dict[str, Any]) -> dict[str, str]:
    """What is told of one run."""
    seconds, reward, sft, evaluate = (
        summary[name] for name in ("seconds", "reward", "sft", "evaluate")
    )
    found = {
        "minutes": f"{seconds['total'] / 60:.1f}",
        "seconds of " + ", ".join(name for name in seconds if name != "total"): ", ".join(
            f"{value:.0f}" for name, value in seconds.items() if name != "total"
        ),
        "peak memory, GiB": f"{summary['peak_memory_bytes'] / 2**30:.1f}",
        "SFT, held-out loss": f"{sft['heldout_loss_before']:.3f} to {sft['heldout_loss']:.3f}",
    }
    for name, about in (("reward model", reward), ("judge", reward["judge"])):
        found[f"{name}, held-out pairs"] = _interval(
            about, "pair_accuracy", "accuracy_low", "accuracy_high"
        )
        found[f"{name}, HH pairs"] = _interval(about, *(f"{of}_hh_rlhf" for of in OF_PAIRS))
    found["the longer answer, all pairs and HH"] = (
        f"{reward['length_baseline']:.3f}, "
        f"{reward.get('length_baseline_hh_rlhf', float('nan')):.3f}"
    )
    sample = summary["sample"]
    found["sampling, mean score of all and of the kept"] = (
        f"{sample['mean_score']:.3f}, {sample['best_score']:.3f}"
    )
    found["sampling, answers finished"] = f"{sample['finished_share']:.0%}"
    for name, about in summary["rl"].items():
        found[f"{name}, training score, first and last"] = (
            f"{about['score_first']:.3f}, {about['score']:.3f}"
        )
    for by in ("reward", "judge"):
        for name, of in evaluate["difference"].items():
            found[f"{name} less SFT, by the {by}"] = _interval(of[by], "mean", "low", "high", "+")
    for name, about in evaluate["models"].items():
        found[f"{name}, KL and tokens"] = f"{about['kl']:.3f}, {about['tokens']:.1f}"
    mismatch = [
        about["mismatch_max"] for about in (*summary["rl"].values(), *evaluate["models"].values())
    ]
    return found | {"mismatch, the largest": f"{max(mismatch):.1e}"}


OF_PAIRS = ("pair_accuracy", "accuracy_low", "accuracy_high")


def _interval(of: dict[str, float], mean: str, low: str, high: str, sign: str = "") -> str:
    return f"{of[mean]:{sign}.3f} [{of[low]:{sign}.3f}, {of[high]:{sign}.3f}]" if low in of else "-"


def answers(options: argparse.Namespace, seed: int) -> Iterator[tuple[str, str]]:
    """Held-out prompts and what the endpoint of a run answers to them, as a client sees it."""
    import openai

    folder = options.runs / str(seed)
    command = [
        *ROAD,
        *settings(options, seed),
        "--run",
        str(folder),
        "--stages",
        "publish",
        "--keep",
    ]
    served = subprocess.Popen([sys.executable, "-u", *command], stdout=subprocess.PIPE, text=True)
    assert served.stdout is not None
    try:
        lines, url = [], ""
        while not url and (line := served.stdout.readline()):
            lines.append(line)
            if found := re.match(r"serving \S+ at (\S+?);", line):
                url = found.group(1)
        if not url:
            raise RuntimeError("the endpoint did not come up:\n" + "".join(lines[-20:]))
        client = openai.OpenAI(base_url=url, api_key="none", timeout=300)
        model = next(iter(client.models.list())).id
        with (folder / "prepare" / "evaluation_prompts.jsonl").open(encoding="utf-8") as file:
            prompts = [json.loads(line) for line in islice(file, options.ask)]
        for prompt in prompts:
            messages = [
                {"role": turn["role"], "content": turn["content"]} for turn in prompt["turns"]
            ]
            answer: Any = client.chat.completions.create(
                model=model,
                messages=messages,
                temperature=0.0,
                max_tokens=64,  # type: ignore[arg-type]
            )
            yield messages[-1]["content"], answer.choices[0].message.content
    finally:
        served.terminate()  # a shell that runs it in the background lets it ignore SIGINT
        served.wait(120)


if __name__ == "__main__":
    main()
