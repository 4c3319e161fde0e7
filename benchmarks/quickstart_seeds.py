"""Run the quickstart for several seeds and print what each reached beside what it is expected to
reach.

python benchmarks/quickstart_seeds.py --seeds 17 18 19 --runs runs/seeds
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

BARS = {
    "wall_s": "< 600",
    "peak_GiB": "< 12",
    "reward/ceiling": ">= 0.85",
    "rejection": ">= 0.55",
    "ppo": ">= 0.65",
    "apa": ">= 0.65",
    "lowest end": "> 0.50",
    "mismatch": "<= 1e-4",
}


def figures(summary: dict, wall_s: float) -> dict[str, float]:
    """The figures of one run, under the names of BARS."""
    rates = summary["evaluate"]["win_rate"]
    mismatch = [summary["rl"][name]["mismatch_max"] for name in summary["rl"]]
    mismatch += [model["mismatch_max"] for model in summary["evaluate"]["models"].values()]
    return {
        "wall_s": wall_s,
        "peak_GiB": summary["peak_memory_bytes"] / 2**30,
        "reward/ceiling": summary["reward"]["pair_accuracy"] / summary["reward"]["noise_ceiling"],
        **{name: rates[name]["mean"] for name in ("rejection", "ppo", "apa")},
        "lowest end": min(rate["low"] for rate in rates.values()),
        "mismatch": max(mismatch),
    }


def main() -> None:
    """Run, collect, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--runs", type=Path, default=Path("runs/seeds"))
    parser.add_argument(
        "--set", action="append", default=[], help="settings to try, as for rayward"
    )
    options = parser.parse_args()
    rows: dict[int, dict[str, float]] = {}
    for seed in options.seeds:
        folder = options.runs / str(seed)
        begun = time.perf_counter()
        extra = [part for setting in options.set for part in ("--set", setting)]
        subprocess.run(
            [
                sys.executable,
                "-m",
                "rayward.pipelines.cli",
                "align",
                "quickstart",
                "--run",
                str(folder),
                "--set",
                f"seed={seed}",
                *extra,
            ],
            check=True,
        )
        rows[seed] = figures(
            json.loads((folder / "summary.json").read_text()), time.perf_counter() - begun
        )
    print("| figure | bar | " + " | ".join(f"seed {seed}" for seed in rows) + " |")
    print("|---|---|" + "---|" * len(rows))
    for name, bar in BARS.items():
        print(
            f"| {name} | {bar} | " + " | ".join(f"{row[name]:.3g}" for row in rows.values()) + " |"
        )


if __name__ == "__main__":
    main()
