"""The two halves of rl_vs_trl.py, each a process of its own: RLOO by Rayward's RL stage and by
TRL's RLOOTrainer.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def gold(*, prompts: Sequence[Any], completions: Sequence[str], **_: Any) -> list[float]:
    """The reward of both sides: the toy world's gold judge."""
    from rayward.data.records import Turn
    from rayward.data.toy.toyworld import judge

    asked = [
        tuple(Turn(turn["role"], turn["content"]) for turn in messages) for messages in prompts
    ]
    return [judge(turns, answer) for turns, answer in zip(asked, completions, strict=True)]


def rayward_half(config: Any, run: Path) -> None:
    """The RL stage as it is; lines of its metrics also carry the time at which they are written."""
    from rayward.pipelines.rl import loop
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.machine import on_machine
    from rayward.pipelines.run.metrics import Metrics

    class Stamped(Metrics):
        def log(self, step: int, values: Any, show: tuple[str, ...] = ()) -> None:
            super().log(step, {**values, "end": time.perf_counter()}, show)

    loop.Metrics = Stamped  # type: ignore[misc, attr-defined]
    loop.train_online(on_machine(Run(run, config), "rl"))


def trl_half(folder: Path, more: str, score: Callable[..., list[float]] = gold) -> None:
    """Train with TRL, `score` as reward, and write what was seen."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback

    task = json.loads((folder / "task.json").read_text())
    torch.set_num_threads(task["cores"])
    model = str(folder / "run" / "sft" / "model")
    shown = AutoTokenizer.from_pretrained(model).apply_chat_template(
        task["prompts"], add_generation_prompt=True
    )
    if shown["input_ids"] != task["ids"]:
        raise SystemExit("TRL would see other prompt tokens than Rayward")
    seen: dict[str, Any] = {"rewards": [], "lengths": [], "ends": []}

    def reward(prompts: Any, completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        scores = score(
            prompts=prompts, completions=[answer[0]["content"] for answer in completions]
        )
        seen["rewards"].append(statistics.mean(scores))
        seen["lengths"].append(statistics.mean(map(len, completion_ids)))
        return scores

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step % (state.max_steps // task["iterations"]) == 0:
                seen["ends"].append(time.perf_counter())

    settings = task["settings"] | json.loads(more)
    config = trl.RLOOConfig(
        output_dir=str(folder / "trl"),
        lr_scheduler_type="constant",
        weight_decay=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        temperature=1.0,
        shuffle_dataset=False,
        gradient_accumulation_steps=task["step"] // settings["per_device_train_batch_size"],
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        **settings,
    )
    data = Dataset.from_dict({"prompt": task["prompts"]})
    trainer = trl.RLOOTrainer(
        model=model, reward_funcs=reward, args=config, train_dataset=data, callbacks=[Clock()]
    )
    trainer.train()
    seen["versions"] = {
        name: metadata.version(name) for name in ("trl", "accelerate", "torch", "transformers")
    }
    (folder / "trl.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    sys.path.append(str(ROOT))
    side, first, second = sys.argv[1:]
    if side == "trl":
        trl_half(Path(first), second)
    else:
        from rayward.configs.load import load

        rayward_half(load(first), Path(second))
