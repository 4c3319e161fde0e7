"""`rayward init NAME --from PART --model M`: a commented config for a part of the road, with rows.

The config has the sections that the part needs, with numbers that fit the model's context and this
machine; it runs as it is, on the example rows, which stand for one's own. Comments are the
sentences of the settings themselves.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.records import Turn

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
    "validate_every": "Fits the example rows. Each look reads all held-out rows: with thousands, "
    "look every 50 steps.",
    "sft_heldout_fraction": "Much, for few example rows; 0.02 is usual.",
    "heldout_fraction": "Much, for few example rows; 0.05 to 0.1 is usual.",
    "max_new_tokens": "Answers that are cut teach little: watch `finished` in the metrics.",
    "iterations": "A try; a run takes 50 and more.",
}
"""What stands below the sentence of a setting whose value fits the example rows and little else."""
# The lines of this file are joined where one ends with a backslash.
REWARD = '''"""The reward of an answer, higher is better. \
This one likes short answers that end; write your own."""


def reward(prompts, completions, references, sources, finished):
    """One number for each answer. `prompts`: lists of {"role", "content"}; \
`references`: what a row says is right."""
    return [float(ended) - len(text) / 1000 \
for text, ended in zip(completions, finished, strict=True)]
'''


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "init", help="write a commented config for a part of the road, with example rows"
    )
    parser.add_argument(
        "name", metavar="NAME", type=Path, help="folder to write; must not be there"
    )
    parts = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser.add_argument("--from", dest="part", choices=tuple(PARTS), required=True, help=parts)
    parser.add_argument(
        "--model", metavar="M", required=True, help="folder or hub name ORG/NAME[@REVISION]"
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    path = init(options.name, options.part, options.model)
    print(f"{path}: {PARTS[options.part]}\nrows to replace by yours: {path.parent / 'rows'}")
    config = shlex.quote(str(path))
    print(f"what it will do:  rayward align {config} --dry-run")
    print(f"run it:           rayward align {config}")
    return 0


def init(folder: Path, part: str, model: str) -> Path:
    """Write the folder; its config's path. ValueError for one that is there, or an unfit model."""
    from rayward.data.model_files.folder import faults
    from rayward.data.model_files.hub_models import fetched, is_hub_name

    if folder.exists():
        raise ValueError(f"{folder} is there already; choose another name")
    model_folder = Path(fetched(model, weights=False))
    problems = faults(model_folder, scores=False)
    if is_hub_name(model):  # its weights are fetched when they are needed
        missing = ("holds no weights", "files of weights that")
        problems = [line for line in problems if not any(words in line for words in missing)]
    if problems:
        raise ValueError("\n".join(f"--model {model}: {line}" for line in problems))
    # A hub name stays one: only the run fetches its weights.
    named = model if is_hub_name(model) else str(model_folder)
    values = _values(part, named, model_folder, folder.resolve())
    (folder / "rows").mkdir(parents=True)
    for name, rows in _rows(LISTS[part]):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "rows" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    if part == "rl":
        (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text("\n".join(_text(part, values)) + "\n", encoding="utf-8")
    return path


def _values(part: str, model: str, model_folder: Path, folder: Path) -> dict[str, Any]:
    """The settings that the config gives, in the order in which it names them."""
    from rayward.data.model_files.folder import positions
    from rayward.data.model_files.hub_models import config_of

    gpus = _gpus()
    context = min(positions(config_of(model_folder)) or 2048, 2048 if gpus else 256)
    shares = [share for name, share in HELD_OUT.items() if name in LISTS[part]]
    files = {name: [{"path": f"{name}.jsonl"}] for name in LISTS[part]}
    values: dict[str, Any] = {
        "name": folder.name,
        "model": {
            "path": model,
            "template": _template(model_folder),
            "context_tokens": context,
            "dtype": "bfloat16" if gpus else "float32",
        },
        "data": {"root": str(folder / "rows"), **files, **dict.fromkeys(shares, 0.2)},
    }
    if gpus:
        values["resources"] = _resources(gpus, part)
    return values | _stages(part, context, gpus, folder)


def _stages(part: str, context: int, gpus: int, folder: Path) -> dict[str, dict[str, Any]]:
    """The sections of the part's stages. `context`: the longest row in tokens."""
    # A micro-batch has to hold the longest row.
    updates = {"micro_batch_tokens": max(context, 8192 if gpus else 512)}
    training = {"validate_every": 2, "keep": "best"}
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
    # At least half of the context is the prompt's.
    max_new_tokens = min(512 if gpus else 48, context // 2)
    rollout = {"max_new_tokens": max_new_tokens, "temperature": 1.0}
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
        if gpus == 1:
            rl["mode"] = "colocate"
        rl["optimizer"] = updates | {"zero_stage": 2}
    function = {"kind": "function", "target": "rewards:reward"}
    sections: dict[str, dict[str, Any]] = {
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
    return sections[part]


def _text(part: str, values: Mapping[str, Any]) -> Iterator[str]:
    """The config's lines: each setting under its sentence."""
    from rayward.configs.reference import groups
    from rayward.configs.schema import STAGE_SECTIONS, Config

    sentences = {setting.name: setting.sentence for group in groups() for setting in group.settings}
    yield f"# {PARTS[part][0].upper()}{PARTS[part][1:]}."
    yield "# Written by rayward init; rayward settings [NAME] explains settings."
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
    """Of one setting or section. `name`: with the sections around it, as in sft.optimizer."""
    indent = "  " * depth
    if isinstance(value, dict):
        yield f"{indent}{key}:"
        for inner, item in value.items():
            yield from _lines(inner, item, sentences, f"{name}.{inner}", depth + 1)
        return
    if name in sentences:
        yield f"{indent}# {sentences[name]}"
    if key in NOTES:
        yield f"{indent}# {NOTES[key]}"
    # JSON in one line is YAML, too.
    yield f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}"


def _template(model_folder: Path) -> str:
    """The model's own chat template, or the first of the table whose tokens the tokenizer has.

    ValueError where it has neither.
    """
    from rayward.data.templates.published.template import own_end_tokens
    from rayward.data.templates.template import TEMPLATES, ids_and_habit
    from rayward.data.templates.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(model_folder)
    try:
        own_end_tokens(tokenizer)
        return "tokenizer"
    except ValueError as error:
        no_own_template = str(error)
    for name, template in TEMPLATES.items():
        try:
            if not template.is_tokenizers:
                ids_and_habit(template, tokenizer)  # ValueError where a token is missing
                return name
        except ValueError:
            continue
    raise ValueError(
        f"{no_own_template}; and it has the tokens of no template that Rayward knows: rayward "
        f"extend {model_folder} --template NAME --out DIR makes a model that has those of one"
    )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _resources(gpus: int, part: str) -> dict[str, Any]:
    """Who has which share of the GPUs of one machine."""
    train = {"train": {"workers": gpus, "gpus": 1}}
    if part not in ("rl", "road"):
        return train
    # Engine and learner take turns. Shares of frozen models say where they run, not what they take.
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
    from rayward.data.record_json import to_json
    from rayward.data.toy import toyworld

    def chat(turns: Sequence[Turn]) -> list[dict[str, str]]:
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    # Calls, so that only the lists that are asked for are made.
    makers = {
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
    yield from ((name, makers[name]()) for name in lists)
