"""`rayward extend`: a checkpoint with tokens that its chat template needs, or a longer context.

A new token starts as the mean of the rows before it, in the embedding and in the head, as
OpenChat's end-of-turn token in LLaMA; or drawn from N(0, std^2), as the paper says of StarCoder.
The mean is taken in fp32. Rows that a vocabulary is padded with are used first, so many models do
not grow; rows that a model lacks for its tokenizer's tokens are added. A token that the tokenizer
has, but not as a special one, becomes special.

A longer context is `max_position_embeddings` alone, or with one of the ways of transformers to
stretch the rotary positions. Models whose positions are learned vectors have none to add.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.model_files.folder import faults
from rayward.data.model_files.hub_models import (
    FORM,
    config_of,
    fetched,
    has_score_head,
    is_hub_name,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "extend", help="add a chat template's tokens to a model, or lengthen its context"
    )
    parser.add_argument("model", metavar="MODEL", help="model folder or hub name")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; must not be there"
    )
    parser.add_argument(
        "--template", metavar="T", help="chat template whose special tokens are added"
    )
    parser.add_argument(
        "--token", action="append", default=[], metavar="TOKEN", help="token to add; repeatable"
    )
    parser.add_argument(
        "--init",
        choices=("mean", "normal"),
        default="mean",
        help="rows of new tokens (default mean)",
    )
    parser.add_argument(
        "--std", type=float, default=0.02, help="with --init normal: their deviation (default 0.02)"
    )
    parser.add_argument("--seed", type=int, default=0, help="with --init normal (default 0)")
    parser.add_argument("--context", type=int, metavar="N", help="longest context in tokens")
    parser.add_argument(
        "--rope",
        metavar="HOW",
        help="stretch rotary positions: linear, dynamic or yarn (by the ratio of the contexts), "
        "or transformers' rope_parameters as JSON",
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.templates.template import find
    from rayward.pipelines.run.metrics import table

    tokens = [*(find(options.template).special_tokens if options.template else ()), *options.token]
    changes = extend(
        options.model,
        options.out,
        tokens,
        options.init,
        options.std,
        options.seed,
        options.context,
        options.rope,
    )
    table(str(options.out), changes)
    return 0


def extend(
    model: str,
    out: Path,
    tokens: list[str],
    init: str = "mean",
    std: float = 0.02,
    seed: int = 0,
    context: int | None = None,
    rope: str | None = None,
) -> dict[str, Any]:
    """Write `model` with `tokens` and `context` to `out`; what changed, for a table.

    Weights keep their dtype. `context` is in tokens. ValueError: nothing to do, no model that can
    be used, an `out` that is there, a context that is not longer, positions that cannot be
    stretched.
    """
    from transformers import AddedToken, AutoModelForCausalLM, AutoModelForSequenceClassification

    from rayward.actors.models.pretrained import pretrained
    from rayward.data.templates.tokenizer import tokenizer_of

    if out.exists():
        raise ValueError(f"{out} is there already; choose another folder")
    if std <= 0:
        raise ValueError(f"--std is {std:g}; give a number above 0")
    if not Path(model).exists() and not is_hub_name(model):
        raise ValueError(f"{model} is no folder, nor a hub name {FORM}")
    model = fetched(model)
    if problems := faults(Path(model), scores=None):
        raise ValueError("\n".join(problems))
    config = config_of(model)
    tokenizer, repair = tokenizer_of(model)
    if repair:
        print(f"{model}: {repair}")
    old_tokens = len(tokenizer)
    old_context = getattr(config, "max_position_embeddings", None)
    if "" in tokens:
        raise ValueError("--token is empty; give the text of a token")
    known = tokenizer.get_vocab()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    new = [token for token in dict.fromkeys(tokens) if token not in known or token not in special]
    vocab_rows = config.get_text_config().vocab_size
    too_few_rows = vocab_rows < old_tokens  # the tokenizer was extended before, the model was not
    if not new and not too_few_rows and context is None and rope is None:
        message = f"{model} needs no extension: it has {', '.join(tokens)}"
        raise ValueError(message if tokens else "give --template, --token or --context")
    if context is not None or rope is not None:
        _lengthen(config, old_context, context, rope)
        tokenizer.model_max_length = config.max_position_embeddings
    if new:
        added = [AddedToken(token, special=True, normalized=False) for token in new]
        # With True the model's other extra special tokens would be special no longer.
        tokenizer.add_special_tokens(
            {"extra_special_tokens": added}, replace_extra_special_tokens=False
        )
    auto = AutoModelForSequenceClassification if has_score_head(config) else AutoModelForCausalLM
    lm = pretrained(auto, model, config, "auto")
    # With more rows than tokens, new tokens take the rows of the padding, which are untrained too.
    trained_rows = min(vocab_rows, old_tokens)
    if len(tokenizer) > trained_rows:
        _add_rows(lm, trained_rows, len(tokenizer), init, std, seed)
    _write(lm, tokenizer, out)
    added_ids = [f"{token} = {tokenizer.convert_tokens_to_ids(token)}" for token in new]
    new_context = f"{old_context} -> {config.max_position_embeddings}"
    return {
        "tokens": f"{old_tokens} -> {len(tokenizer)}",
        "added": ", ".join(added_ids) or "none",
        "embedding rows": f"{vocab_rows} -> {lm.get_input_embeddings().weight.shape[0]}",
        "context": new_context if context or rope else str(old_context),
    }


def _write(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """The folder, whole or not at all."""
    from rayward.actors.models.pretrained import make_generation_config_writable
    from rayward.data.templates.saved_tokenizer import save_tokenizer

    # Beside `out`, since a rename is whole or not at all within one file system only.
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        make_generation_config_writable(lm)
        lm.save_pretrained(beside)
        save_tokenizer(tokenizer, beside)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _add_rows(lm: PreTrainedModel, old: int, new: int, init: str, std: float, seed: int) -> None:
    """Rows `old` to `new` of the embedding and of the head, which may be one matrix."""
    import torch

    if new > lm.get_input_embeddings().weight.shape[0]:
        # Its own way to fill the rows is off: they are filled below, and cover padding rows, too.
        lm.resize_token_embeddings(new, mean_resizing=False)
    head = lm.get_output_embeddings()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights = [lm.get_input_embeddings().weight]
        if head is not None:  # a reward model has none
            weights.append(head.weight)
        # Tied weights are one parameter, which is filled once.
        for weight in dict.fromkeys(weights):
            shape = (new - old, weight.shape[1])
            # Drawn even where it is not used: the generator has one course for both ways.
            drawn = torch.randn(shape, generator=generator) * std
            # A mean of many rows in bf16 would lose most of its digits.
            rows = weight[:old].float().mean(0) if init == "mean" else drawn
            weight[old:new] = rows.to(weight.dtype)
        if head is not None and head.bias is not None:
            head.bias[old:new] = head.bias[:old].float().mean().to(head.bias.dtype)


def _lengthen(
    config: PretrainedConfig, old: int | None, context: int | None, rope: str | None
) -> None:
    """Change `max_position_embeddings` and `rope_parameters`; raises as `extend`."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters or old is None:
        raise ValueError(
            f"{config.model_type} has no rotary positions to go on from: its context cannot be "
            "lengthened"
        )
    if context is not None and context <= old:
        raise ValueError(f"--context is {context}, the model's is {old} already; give a longer one")
    if rope is not None:
        if context is None and not rope.startswith("{"):
            raise ValueError(f"--rope {rope} needs --context, from which its factor follows")
        # A model that is stretched already has a factor of its own, which ours would replace.
        plain = {"rope_type": "default", "rope_theta": parameters.get("rope_theta")}
        if parameters != plain and not rope.startswith("{"):
            raise ValueError(
                f"the model's rotary positions are {parameters}; give all of their settings as JSON"
            )
        config.rope_parameters = plain | _rope(rope, old, (context or old) / old)
    config.max_position_embeddings = context or old
    try:
        config.validate_rope()
    except (KeyError, ValueError) as error:
        raise ValueError(f"--rope {rope}: {error.args[0]}") from None


def _rope(how: str, old: int, factor: float) -> dict[str, Any]:
    """The rope_parameters that --rope means; ValueError for what transformers would not take."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if not how.startswith("{"):
        if how not in ("linear", "dynamic", "yarn"):
            raise ValueError(
                f"--rope is {how!r}; give linear, dynamic, yarn, or transformers' rope_parameters "
                "as JSON"
            )
        # Of the three only yarn reads the length that the model was trained at.
        trained_at = {"original_max_position_embeddings": old} if how == "yarn" else {}
        return {"rope_type": how, "factor": factor} | trained_at
    try:
        given = dict(json.loads(how))
    except ValueError as error:
        raise ValueError(f"--rope {how}: not JSON: {error}") from None
    kind, known = given.get("rope_type", "default"), ("default", *ROPE_INIT_FUNCTIONS)
    if kind not in known:
        raise ValueError(
            f"--rope: rope_type is {kind!r}, which transformers does not know; it knows "
            f"{', '.join(known)}"
        )
    stretch = given.get("factor", 1.0)
    # JSON's true would pass as the number 1.
    if isinstance(stretch, bool) or not isinstance(stretch, int | float) or stretch < 1:
        raise ValueError(f"--rope: factor is {stretch!r}; give a number of at least 1")
    return given
