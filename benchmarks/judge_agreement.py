"""Judges that run here against human labels: PandaLM's annotators, and Nectar's rankings re-judged.

    python benchmarks/judge_agreement.py --data DATA --model SMOLLM2 --work DIR [--limit 20]

A reward model is trained on HH and Nectar from the model, by `rayward align`; then it, the longer
answer and the model itself as a judge (in both orders) are asked about PandaLM's test set and about
300 pairs, drawn by seed, of Nectar's test split, whose rankings gpt-4 made again. All of it is
commands of `rayward`, which are printed; what a stopped try has made is kept, and the same command
goes on. DIR/agreement.md has the tables, DIR/SET.json all figures. `--limit N`: N pairs of each
set, and N training rows of each source, to try it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rayward.pipelines.report.judge_words import shown

TRAIN = {"nectar": "nectar/train.jsonl.gz", "hh_rlhf": "hh_rlhf/train.jsonl.gz"}
SETS = {
    "pandalm": ("preference/pandalm_testset.json.gz", None, ()),
    "nectar": ("nectar/test.jsonl.gz", 300, ("nectar/rejudged.jsonl.gz",)),
}
"""Labels, how many pairs of them (None: all), and rankings of the same answers made again."""
JUDGES = ("reward", "length", "model")
LENGTH = "rayward.data.rules:length"
COLUMNS = ("accuracy", "kappa", "prefers_longer", "beyond_length")


def main() -> None:
    """Train, ask, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2's folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--limit", type=int, help="pairs of a set, and rows of a source, at most")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument(
        "--rules",
        default="alpaca_eval_2",
        help="of the model as judge (default alpaca_eval_2: from log-probabilities, which a model "
        "of any size gives)",
    )
    parser.add_argument(
        "--sets", nargs="+", choices=tuple(SETS), default=list(SETS), help="default: both"
    )
    parser.add_argument(
        "--judges", nargs="+", choices=JUDGES, default=list(JUDGES), help="default: all three"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    reward = trained(options) if "reward" in options.judges else Path()
    tables = [of_set(options, name, reward) for name in options.sets]
    text = "\n\n".join(tables) + "\n"
    (options.work / "agreement.md").write_text(text, encoding="utf-8")
    print(text)


def rayward(*words: object) -> None:
    """Do a command of rayward, and print it. SystemExit where it fails."""
    said = [str(word) for word in words]
    print(f"$ rayward {shlex.join(said)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "rayward.pipelines.cli", *said], check=False)
    if done.returncode:
        sys.exit(f"rayward {said[0]} ended with status {done.returncode}; run the same again")


def trained(options: argparse.Namespace) -> Path:
    """The folder of the reward model; trained where it is not there."""
    run = options.work / "reward"
    limit = f", limit: {options.limit}" if options.limit else ""
    sources = ", ".join(f"{{path: {path}, format: {name}{limit}}}" for name, path in TRAIN.items())
    settings = {
        "model.path": options.model.resolve(),
        "data.root": options.data.resolve(),
        "data.preferences": f"[{sources}]",
        "seed": options.seed,
    }
    words = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    rayward("align", "rm_smollm2", "--run", run, *words)
    return run / "reward" / "model"


def of_set(options: argparse.Namespace, name: str, reward: Path) -> str:
    """Ask all judges about a set of labels; a table of what they have in common with these."""
    labels, count, again = SETS[name]
    count = options.limit if count is None else min(count, options.limit or count)
    folder = options.work / name
    chosen = [options.data / labels, "--seed", options.seed]
    chosen += ["--pairs", count] if count else []
    rayward("judge", "agreement", *chosen, "--write", folder)
    files = [folder / "second.jsonl", folder / "first.jsonl"]
    common = ["--questions", folder / "question.jsonl", "--seed", options.seed]
    # Most replies of a small model may be none of what was asked: counted, no reason to stop.
    asked = ["--rules", options.rules, "--orders", "both", "--unreadable", 10**6]
    judges = {
        "reward": (reward, []),
        "length": (LENGTH, []),
        "model": (options.model, [*asked, "--context-tokens", 4096]),
    }
    verdicts = []
    for short in options.judges:
        judge, more = judges[short]
        out = folder / short
        rayward("judge", "pairwise", *files, *common, "--judge", judge, *more, "--out", out)
        verdicts.append(out / "verdicts.jsonl")
    rankings = [part for path in again for part in ("--rankings", options.data / path)]
    out = options.work / f"{name}.json"
    rayward("judge", "agreement", *chosen, "--verdicts", *verdicts, *rankings, "--json", out)
    return table(name, json.loads(out.read_text(encoding="utf-8")))


def table(name: str, report: dict[str, Any]) -> str:
    """The figures of a set in Markdown, with 95 % intervals."""
    lines = [
        f"{name}: {report['labelled']} labelled pairs of {report['prompts']} prompts, "
        f"{report['label_ties']} of them ties",
        "",
        "| judge | n | accuracy | kappa | prefers longer | beyond length | order conflicts |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["judges"]:
        conflicts = row["conflicts"]
        share = "-" if conflicts["mean"] is None else f"{conflicts['mean']:.3f}"
        cells = [row["judge"], str(row["n"]), *(shown(row[column]) for column in COLUMNS), share]
        lines.append(f"| {' | '.join(cells)} |")
    for row in report["humans"]:
        both = " and ".join(row["labellers"])
        cells = [both, str(row["n"]), shown(row["accuracy"]), shown(row["kappa"]), "-", "-", "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
