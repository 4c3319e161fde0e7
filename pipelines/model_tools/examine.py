"""What is wrong with a model's folder, and what is worth knowing of it, before it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rayward.data.model_files.folder import faults, has_tokenizer
from rayward.data.model_files.hub_models import config_of, has_score_head, read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

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
    """(what would break rollouts in training, what is worth knowing).

    `template`: the chat template to train with, by default the model's own. `gpus`: those of the
    engine; on the CPU it takes fewer models. ValueError where there is no model folder, or no such
    template.
    """
    from rayward.configs.sections.model import CPU_HEAD_SIZES
    from rayward.data.templates.tokenizer import tokenizer_of
    from rayward.pipelines.rows.renderer import check_vocabulary

    if not (folder / "config.json").is_file():
        fault = "has no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"--model {folder} {fault}; give a model folder as transformers saves it")
    problems = faults(folder, None, with_tokenizer=False)
    try:
        scores, config = is_reward_model(folder), config_of(folder).get_text_config()
    except Exception:
        # Transformers raises what it likes for a config that cannot be read; `faults` has told it.
        return problems, []
    odd_sizes = [] if scores or gpus else sorted(head_sizes(config) - {*CPU_HEAD_SIZES})
    if odd_sizes:
        sizes = " and ".join(map(str, odd_sizes))
        problems.append(
            f"heads of {sizes}: vLLM on the CPU takes {', '.join(map(str, CPU_HEAD_SIZES))}; use "
            "--gpus"
        )
    notes: list[str] = []
    generation: dict[str, object] = {}
    path = folder / "generation_config.json"
    try:
        if path.is_file():
            generation = read_json(path)
    except ValueError as error:
        problems.append(str(error))
    ignored = ", ".join(
        f"{name} {generation[name]}"
        for name, neutral in NEUTRAL.items()
        if generation.get(name) not in (None, neutral)
    )
    if ignored:
        notes.append(
            f"generation_config.json has {ignored}: training rollouts ignore it and sample all of "
            "the vocabulary"
        )
    if not has_tokenizer(folder):
        problems.append(f"no tokenizer in {folder}; copy the one that the model was trained with")
        return problems, notes
    tokenizer, repair = tokenizer_of(folder)
    if repair:
        notes.append(f"the tokenizer: {repair}")
    if tokenizer.eos_token_id is None:
        problems.append(
            "the tokenizer has no end token, so no answer ever ends; set eos_token in "
            "tokenizer_config.json"
        )
    try:
        check_vocabulary(tokenizer, str(folder))
    except ValueError as error:
        problems.append(str(error))
    # Many models pad their vocabulary, so this is no fault.
    if (spare := config.vocab_size - len(tokenizer)) > 0:
        notes.append(
            f"the model has {spare} ids more than its tokenizer has tokens; rollouts may sample "
            "them"
        )
    template_problems, template_notes = spelling(folder, template)
    # A template that cannot be used cannot say what ends an answer.
    if scores and not template_problems:
        fault = early_score(config.pad_token_id, tokenizer, template)
        template_problems = [fault] if fault else []
    return problems + template_problems, notes + template_notes


def head_sizes(config: PretrainedConfig) -> set[int]:
    """Of a text model's attention: layers may differ (Gemma 4), or have no heads (Mamba)."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    sizes = (getattr(layer, "head_dim", None) or _width(layer) for layer in layers)
    return {size for size in sizes if size}


def _width(config: PretrainedConfig) -> int | None:
    """The size of a head where the config does not name it."""
    heads = getattr(config, "num_attention_heads", None)
    return config.hidden_size // heads if heads else None


def is_reward_model(folder: Path) -> bool:
    """Whether the model of a folder gives scores and no text."""
    return has_score_head(config_of(folder))


def early_score(pad: int | None, tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """Why transformers would read other scores in a batch than Rayward; "" if it does not.

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
        return ""  # nothing says what ends an answer; `spelling` notes it
    if pad not in stop_token_ids(find(template or "tokenizer"), tokenizer):
        return ""
    return (
        f"pad_token_id {pad} of config.json is {tokenizer.decode([pad])!r}, which ends an answer: "
        f"transformers reads the score of a finished conversation before its end; {fix}"
    )


def spelling(folder: Path, name: str | None) -> tuple[list[str], list[str]]:
    """(what breaks, what is worth knowing) of a model's tokenizer with a chat template."""
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
        if template.is_tokenizers and name is None and not tokenizer.chat_template:
            return [], [
                "the tokenizer has no chat template: name one, here with --template and in "
                "model.template"
            ]
        if template.is_tokenizers:
            traits = behaviour(tokenizer)
        else:
            unlike = unlike_own(template, tokenizer)
            traits = [unlike] if unlike else []
        # Before what may raise: the notes are kept where a check below fails.
        notes += [f"chat template {template.name}: {line}" for line in traits]
        if not template.is_tokenizers:
            # As a stage saves it, so that what is checked below is what would be served.
            tokenizer.chat_template = jinja(template, tokenizer)
        assert_served_as_trained(template, tokenizer)
        # Saving reads the tokenizer back, and refuses one that comes back changed.
        with TemporaryDirectory() as saved:
            save_tokenizer(tokenizer, saved, config_of(folder))
    except ValueError as error:
        return [str(error)], notes
    return [], notes
