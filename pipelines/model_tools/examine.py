"""What is wrong with a model's folder, and what is worth knowing of it, before anything is trained
from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayward.data.model_files.folder import faults, has_tokenizer
from rayward.data.model_files.hub_models import config_of, has_score_head, read_json

NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""Settings of a generation_config.json with the value that changes nothing."""


def examine(
    folder: Path, gpus: int = 0, template: str | None = None
) -> tuple[list[str], list[str]]:
    """(what would break rollouts in training, what is worth knowing), with a chat template or the
    model's own.

    ValueError where there is no model folder, or no such template.
    """
    from rayward.configs.sections.model import CPU_HEAD_SIZES
    from rayward.data.templates.tokenizer import tokenizer_of
    from rayward.pipelines.rows.renderer import check_vocabulary

    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"--model {folder} {found}; give a model folder as transformers saves it")
    broken = faults(folder, None, with_tokenizer=False)
    try:
        scores, config = is_reward_model(folder), config_of(folder).get_text_config()
    except (
        Exception
    ):  # whatever transformers makes of a config that cannot be read, which `faults` has told
        return broken, []
    odd_sizes = [] if scores or gpus else sorted(head_sizes(config) - {*CPU_HEAD_SIZES})
    if odd_sizes:
        told = " and ".join(map(str, odd_sizes))
        broken.append(
            f"heads of {told}: vLLM on the CPU takes {', '.join(map(str, CPU_HEAD_SIZES))}; use "
            "--gpus"
        )
    notes: list[str] = []
    try:
        given = read_json(own) if (own := folder / "generation_config.json").is_file() else {}
    except ValueError as error:
        broken.append(str(error))
        given = {}
    odd = {
        name: given[name] for name, value in NEUTRAL.items() if given.get(name) not in (None, value)
    }
    if odd:
        told = ", ".join(f"{name} {value}" for name, value in odd.items())
        notes.append(
            f"generation_config.json has {told}: training rollouts ignore it and sample all of "
            "the vocabulary"
        )
    if not has_tokenizer(folder):
        return [
            *broken,
            f"no tokenizer in {folder}; copy the one that the model was trained with",
        ], notes
    tokenizer, told = tokenizer_of(folder)
    if told:
        notes.append(f"the tokenizer: {told}")
    if tokenizer.eos_token_id is None:
        broken.append(
            "the tokenizer has no end token, so no answer ever ends; set eos_token in "
            "tokenizer_config.json"
        )
    try:
        check_vocabulary(tokenizer, str(folder))
    except ValueError as error:
        broken.append(str(error))
    if (spare := config.vocab_size - len(tokenizer)) > 0:
        notes.append(
            f"the model has {spare} ids more than its tokenizer has tokens; rollouts may sample "
            "them"
        )
    more, words = spelling(folder, template)
    if scores and not more:
        more = list(filter(None, [early_score(config.pad_token_id, tokenizer, template)]))
    return [*broken, *more], notes + words


def head_sizes(config: Any) -> set[int]:
    """Of a text model's attention: layers may have heads of different sizes (Gemma 4), or none
    (Mamba).
    """
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    sizes = (getattr(of, "head_dim", None) or _width(of) for of in layers)
    return {size for size in sizes if size}


def _width(config: Any) -> int | None:
    heads = getattr(config, "num_attention_heads", None)
    return config.hidden_size // heads if heads else None


def is_reward_model(folder: Path) -> bool:
    """Whether the model of a folder gives scores and no text."""
    return has_score_head(config_of(folder))


def early_score(pad: int | None, tokenizer: Any, template: str | None) -> str:
    """Why the library would not read the scores of rows in a batch, or not where they stand; "" if
    it does.

    It reads a row's score at the last token that is not the config's pad id. Rayward reads it at
    the row's end.
    """
    from rayward.data.templates.template import find, stop_token_ids

    fix = "set it in config.json to another token, as a reward model that Rayward saves has it"
    if pad is None:
        return (
            "config.json names no pad_token_id, so transformers refuses a batch of more than one "
            f"row; {fix}"
        )
    if not template and not tokenizer.chat_template:
        return ""
    if pad not in stop_token_ids(find(template or "tokenizer"), tokenizer):
        return ""
    return (
        f"pad_token_id {pad} of config.json is {tokenizer.decode([pad])!r}, which ends an answer: "
        f"transformers reads the score of a finished conversation before its end; {fix}"
    )


def spelling(folder: Path, name: str | None) -> tuple[list[str], list[str]]:
    """What breaks, and what is worth knowing, of the words of a model: its tokenizer with a chat
    template.
    """
    from tempfile import TemporaryDirectory

    from rayward.data.templates.behaviour import behaviour, unlike_own
    from rayward.data.templates.jinja import jinja
    from rayward.data.templates.saved_tokenizer import (
        assert_keeps_text,
        assert_served_as_trained,
        save_tokenizer,
    )
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import tokenizer_of

    tokenizer, template = tokenizer_of(folder)[0], find(name or "tokenizer")
    notes: list[str] = []
    try:
        assert_keeps_text(tokenizer)
        if template.own and name is None and not tokenizer.chat_template:
            return [], [
                "the tokenizer has no chat template: name one, here with --template and in "
                "model.template"
            ]
        told = (
            behaviour(tokenizer)
            if template.own
            else list(filter(None, [unlike_own(template, tokenizer)]))
        )
        notes += [f"chat template {template.name}: {line}" for line in told]
        if not template.own:
            tokenizer.chat_template = jinja(template, tokenizer)
        assert_served_as_trained(template, tokenizer)
        with TemporaryDirectory() as place:
            save_tokenizer(tokenizer, place, config_of(folder))
    except ValueError as error:
        return [str(error)], notes
    return [], notes
