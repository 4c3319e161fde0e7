"""The halves of real_model.py, each a process of its own that also says how much memory it and all
below it took.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rl_halves
import rl_vs_trl
import sft_vs_trl

SAMPLE_SECONDS = 0.2


def plain(*, completions: Sequence[str], **_: Any) -> list[float]:
    """The reward of both sides: the share of words of at most four characters; 0 without a word."""
    words = [text.split() for text in completions]
    return [sum(len(word) <= 4 for word in of) / max(1, len(of)) for of in words]


def rayward_sft(folder: Path) -> dict[str, Any]:
    """The SFT stage on the conversations in the folder."""
    from rayward.configs.load import load
    from rayward.pipelines.rows.records import load_records
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.machine import on_machine

    run = on_machine(Run(folder / "run", load(str(folder / "config.yaml"))), "sft")
    return sft_vs_trl.rayward_half(
        run.folder, run.config, load_records(folder / "chats.jsonl"), folder
    )


def trl_sft(folder: Path, strategy: str, more: str) -> dict[str, Any]:
    """TRL's SFTTrainer on the same rows."""
    sft_vs_trl.trl_half(folder, strategy, 1, json.loads(more))
    return json.loads((folder / "trl.json").read_text())


def rayward_rl(folder: Path) -> dict[str, Any]:
    """The RL stage."""
    from rayward.configs.load import load

    config = load(str(folder / "config.yaml"))
    # The judge of the evaluation would watch; there is none, as no reward model was trained.
    config = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"judge": "gold"})}
    )
    rl_vs_trl.accept(folder / "run", config)
    rl_halves.rayward_half(config, folder / "run")
    return rl_vs_trl.told(folder / "run")


def trl_rl(folder: Path, more: str) -> dict[str, Any]:
    """TRL's RLOOTrainer on the same prompts."""
    rl_halves.trl_half(folder, more, plain)
    return json.loads((folder / "trl.json").read_text())


def main(half: str, folder: Path, *more: str) -> None:
    """Run a half; what it saw and its peak memory go to half.json."""
    from rayward.pipelines.run import memory

    memory.SAMPLE_SECONDS = SAMPLE_SECONDS
    with memory.PeakMemory() as seen:
        found = {
            "rayward_sft": rayward_sft,
            "trl_sft": trl_sft,
            "rayward_rl": rayward_rl,
            "trl_rl": trl_rl,
        }[half](folder, *more)
    (folder / "half.json").write_text(json.dumps(found | {"peak_memory_bytes": seen.peak_bytes}))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
