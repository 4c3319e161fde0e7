"""`rayward init NAME --from PART --model M`: a folder with a commented config for a part of the
road, and example rows.

The config has the sections that the part needs, with numbers that fit the model's context and this
machine; it runs as it is, on the example rows, which stand for one's own. Comments are the
sentences of the settings themselves.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PARTS = {
    "sft": "supervised fine-tuning on conversations",
    "rm": "a reward model from rankings or pairs",
    "dpo": "DPO of a chat model on rankings or pairs",
    "rl": "RLOO of a chat model whose reward is a Python function",
    "road": "the whole road: SFT, reward model, rejection sampling, RL, evaluation, endpoint",
}
LISTS = {
    "sft": ("conversations",),
    "rm": ("preferences",),
    "dpo": ("preferences",),
    "rl": ("prompts",),
    "road": ("conversations", "preferences", "prompts", "evaluation_prompts"),
}
HELD_OUT = {"conversations": "sft_heldout_fraction", "preferences": "heldout_fraction"}
NOTES = {
    "context_tokens": "So few make a try on CPUs quick; give what your rows have.",
    "validate_every": "Fits the example rows. Each look reads all held-out rows: with thousands, look every 50 steps.",
    "sft_heldout_fraction": "Much, for few example rows; 0.02 is usual.",
    "heldout_fraction": "Much, for few example rows; 0.05 to 0.1 is usual.",
    "max_new_tokens": "Answers that are cut teach little: watch `finished` in the metrics.",
    "iterations": "A try; a run takes 50 and more.",
}
"""What stands below the sentence of a setting whose value fits the example rows and little else."""
REWARD = '''"""The reward of an answer, higher is better. This one likes short answers that end; write your own."""


def reward(prompts, completions, references, sources, finished):
    """One number for each answer. `prompts`: lists of {"role", "content"}; `references`: what a row says is right."""
    return [float(ended) - len(text) / 1000 for text, ended in zip(completions, finished, strict=True)]
'''


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "init", help="write a commented config for a part of the road, with example rows"
    )
    parser.add_argument(
        "name", metavar="NAME", type=Path, help="folder to write; must not be there"
    )
    told = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser.add_argument("--from", dest="part", choices=tuple(PARTS), required=True, help=told)
    parser.add_argument(
        "--model", metavar="M", required=True, help="folder or hub name ORG/NAME[@REVISION]"
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    path = init(options.name, options.part, options.model)
    print(f"{path}: {PARTS[options.part]}\nrows to replace by yours: {path.parent / 'rows'}")
    said = shlex.quote(str(path))
    print(
        f"what it will do:  rayward align {said} --dry-run\nrun it:           rayward align {said}"
    )
    return 0


def init(folder: Path, part: str, model: str) -> Path:
    """Write the folder; its config's path. ValueError for a folder that is there, or a model that
    is not.
    """
    from rayward.data.model_files.folder import faults
    from rayward.data.model_files.hub_models import fetched, is_hub_name

    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another name")
    place = Path(fetched(model, weights=False))
    wrong = faults(place, scores=False)
    if is_hub_name(model):  # its weights are fetched when they are needed
        missing = ("holds no weights", "files of weights that")
        wrong = [told for told in wrong if not any(words in told for words in missing)]
    if wrong:
        raise ValueError("\n".join(f"--model {model}: {told}" for told in wrong))
    values = _values(part, model if is_hub_name(model) else str(place), place, folder.resolve())
    (folder / "rows").mkdir(parents=True)
    for name, rows in _rows(LISTS[part]):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "rows" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    if part == "rl":
        (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text("\n".join(_text(part, values)) + "\n", encoding="utf-8")
    return path


def _values(part: str, model: str, place: Path, folder: Path) -> dict[str, Any]:
    """The settings that the config gives."""
    from rayward.data.model_files.folder import positions
    from rayward.data.model_files.hub_models import config_of

    gpus = _gpus()
    holds = positions(config_of(place)) or 2048
    context = min(holds, 2048 if gpus else 256)
    updates = {"micro_batch_tokens": max(context, 8192 if gpus else 512)}
    answer = min(512 if gpus else 48, context // 2)
    training = {"validate_every": 2, "keep": "best"}
    shares = [share for name, share in HELD_OUT.items() if name in LISTS[part]]
    files = {name: [{"path": f"{name}.jsonl"}] for name in LISTS[part]}
    values: dict[str, Any] = {
        "name": folder.name,
        "model": {
            "path": model,
            "template": _template(place),
            "context_tokens": context,
            "dtype": "bfloat16" if gpus else "float32",
        },
        "data": {"root": str(folder / "rows"), **files, **dict.fromkeys(shares, 0.2)},
    }
    if gpus:
        values["resources"] = _resources(gpus, part)
    sft = {
        "epochs": 2,
        "samples_per_step": 8,
        **training,
        "optimizer": {"learning_rate": 2e-5, **updates},
    }
    reward = {"rankings_per_step": 8, **training, "optimizer": {"learning_rate": 1e-5, **updates}}
    dpo = {
        "beta": 0.1,
        "rankings_per_step": 8,
        **training,
        "optimizer": {"learning_rate": 5e-7, **updates},
    }
    rollout = {"max_new_tokens": answer, "temperature": 1.0}
    rl: dict[str, Any] = {
        "algorithms": ["rloo"],
        "iterations": 4,
        "prompts_per_iteration": 8,
        "samples_per_prompt": 4,
        "samples_per_step": 16,
        "epochs": 1,
        "optimizer": updates,
        "rloo": {"learning_rate": 1e-6, "kl_coef": 0.05},
    }
    if gpus and part in ("rl", "road"):
        rl |= {"mode": "colocate"} if gpus == 1 else {}
        rl["optimizer"] = updates | {"zero_stage": 2}
    function = {"kind": "function", "target": "rewards:reward"}
    own: dict[str, dict[str, Any]] = {
        "sft": {"sft": sft},
        "rm": {"reward": reward},
        "dpo": {"dpo": dpo},
        "rl": {
            "rollout": rollout,
            "scoring": {"sources": [function], "functions": str(folder)},
            "rl": rl,
        },
        "road": {
            "sft": sft,
            "reward": reward,
            "rollout": rollout,
            "sample": {
                "prompts": 16,
                "samples_per_prompt": 4,
                "training": {
                    "epochs": 1,
                    "samples_per_step": 8,
                    "optimizer": {"learning_rate": 1e-5, **updates},
                },
            },
            "rl": rl,
            "evaluate": {"judge": "reward_model", "prompts": 16},
            "publish": {"model": "best", "port": 8000},
        },
    }
    return values | own[part]


def _text(part: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The config's lines: each setting under its sentence."""
    from rayward.configs.load import fields
    from rayward.configs.schema import STAGE_SECTIONS, Config

    sentences = {name: sentence for name, sentence, _ in fields()}
    yield f"# {PARTS[part][0].upper()}{PARTS[part][1:]}."
    yield "# Written by rayward init; rayward settings lists all settings."
    for name, value in values.items():
        if isinstance(value, dict):
            yield f"\n# {Config.model_fields[name].description}"
        yield from _lines(name, value, sentences, name, 0)
    if left_out := [stage for stage in STAGE_SECTIONS if stage not in values]:
        yield "\n# Stages that this run does without; null leaves a stage out."
        yield from (f"{stage}: null" for stage in left_out)


def _lines(
    key: str, value: Any, sentences: Mapping[str, str], name: str, depth: int
) -> Iterator[str]:
    indent = "  " * depth
    if isinstance(value, dict):
        yield f"{indent}{key}:"
        for inner, of in value.items():
            yield from _lines(inner, of, sentences, f"{name}.{inner}", depth + 1)
        return
    if name in sentences:
        yield f"{indent}# {sentences[name]}"
    if key in NOTES:
        yield f"{indent}# {NOTES[key]}"
    yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"


def _template(place: Path) -> str:
    """The model's own chat template, or the first of the table whose tokens the tokenizer has.

    ValueError where it has neither.
    """
    from rayward.data.templates.published.template import own_end_tokens
    from rayward.data.templates.template import TEMPLATES, ids_and_habit
    from rayward.data.templates.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(place)
    try:
        own_end_tokens(tokenizer)
        return "tokenizer"
    except ValueError as error:
        told = str(error)
    for name, template in TEMPLATES.items():
        try:
            if not template.own:
                ids_and_habit(template, tokenizer)
                return name
        except ValueError:
            continue
    raise ValueError(
        f"{told}; and it has the tokens of no template that Rayward knows: rayward extend {place} "
        "--template NAME --out DIR makes a model that has those of one"
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _resources(gpus: int, part: str) -> dict[str, Any]:
    """Who has which share of the GPUs of one machine."""
    train = {"train": {"workers": gpus, "gpus": 1}}
    if part not in ("rl", "road"):
        return train
    # Engine and learner take turns; the frozen models' shares say where they run, not what they
    # take.
    if gpus == 1:
        shares = {"rollout": 0.4, "policy": 0.3, "reference": 0.05, "reward": 0.05}
        return train | {role: {"gpus": share} for role, share in shares.items()}
    if gpus == 2:  # one for the engine, one for all others
        shares = {"rollout": 1, "policy": 0.5, "reference": 0.15, "reward": 0.15}
        return train | {role: {"gpus": share} for role, share in shares.items()}
    engines = gpus // 2  # half for the engines, one for the frozen models, the rest learns
    return train | {
        "rollout": {"workers": engines, "gpus": 1},
        "policy": {"workers": gpus - engines - 1, "gpus": 1},
        "reference": {"gpus": 0.25},
        "reward": {"gpus": 0.25},
    }


def _rows(lists: tuple[str, ...]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Example rows of each list, in forms that data sets are published in."""
    from rayward.data.records import to_json
    from rayward.data.toy import toyworld

    def chat(turns: Any) -> list[dict[str, str]]:
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    made = {
        "conversations": lambda: [
            {"messages": chat(row.turns)} for row in toyworld.demonstrations(48, 1)
        ],
        "preferences": lambda: [to_json(row) for row in toyworld.rankings(48, 4, 0.0, 1)[0]],
        "prompts": lambda: [
            {"messages": chat(row.turns)} for row in toyworld.prompts(48, 1, "train")
        ],
        "evaluation_prompts": lambda: [
            {"messages": chat(row.turns)} for row in toyworld.prompts(24, 1, "evaluation")
        ],
    }
    yield from ((name, made[name]()) for name in lists)
