"""Proof at load: the log-probs and scores that we compute are those of the model's own forward.

Our modules take a model's body and its head apart, so that only chosen positions meet the head.
What a model does after its head (Cohere scales the logits, Gemma-2 caps them, Granite and MiniCPM3
divide) is then ours to do: it is read from the fields of the config that say it, and then held
against the model itself on a row of tokens. A model that differs is refused, since it would be
trained wrongly without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models.heads import TokenPolicy, TokenScalar
from rayward.algorithms.logprobs import LogitMap

SCALES: dict[str, Callable[[float, Any], tuple[float, ...]]] = {
    "logit_scale": lambda value, config: (value,),  # Cohere
    # Granite divides, HyperCLOVA X multiplies.
    "logits_scaling": lambda value, config: (1 / value, value),
    "lm_head_multiplier": lambda value, config: (value,),  # Falcon-H1
    # MiniCPM3, before its head.
    "dim_model_base": lambda value, config: (value / config.hidden_size,),
    "logits_mup_width_multiplier": lambda value, config: (1 / value,),  # Inkling, before its head
}
"""Fields of configs that scale the logits, and the factors that a value may mean."""
SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
ROW = 15  # tokens of a probe at load; the shortest context is 16
TRANSFER_ROW = 64  # tokens of a probe of a transfer, where the context has room
OUTLIER = 10.0
"""A token of a probe counts at most so many times the gap that is allowed on the average.

Random tokens lie far from all that a model has learnt, and one of them may sit where rounding is
amplified a thousand times: seen, with SmolLM2 in fp32, is 6e-3 nats on one token beside 1e-5 on all
others. A weight that did not arrive moves the others too.
"""
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest gap of a log-prob in fp32, mean gap in bf16, where the model's own forward rounds its
logits.
"""


def prove_tied(lm: Any, folder: str) -> None:
    """ValueError where a config ties the head to the embedding and the weights hold a head of its
    own.

    transformers then leaves them apart, engines take the embedding for both.
    """
    head, tied = lm.get_output_embeddings(), getattr(lm.config, "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not lm.get_input_embeddings().weight:
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings true, but the weights hold a head of "
            "its own that differs from the embedding: transformers uses it, vLLM does not. Set "
            "tie_word_embeddings false in config.json if the head is right, or take it out of "
            "the weights"
        )


def prove_policy(policy: TokenPolicy, folder: str) -> None:
    """Set the `logit_map` with which a policy gives the log-probs of its model's own forward.

    Raises ValueError with both numbers where no field of the config says how, and where tokens see
    those after them.
    """
    lm = policy.lm
    row_1T = probe_row(lm.config).to(lm.device)
    every_1T = torch.ones_like(row_1T, dtype=torch.bool)
    with torch.no_grad():
        logits_TV = lm(input_ids=row_1T, use_cache=False).logits[0, :-1].float()
        theirs_T = (
            (logits_TV / policy.temperature).log_softmax(-1).gather(1, row_1T[0, 1:, None])[:, 0]
        )
        maps = logit_maps(lm.config)
        for policy.logit_map in maps:
            ours_T = policy(row_1T, every_1T)[0]
            if _gap(ours_T, theirs_T, lm.dtype) <= ALLOWED[lm.dtype]:
                again_T = policy(_other_end(row_1T), every_1T)[0]
                return _prove_causal(lm, ours_T[:-1], again_T[:-1], folder)
    # Of the last, which is nothing.
    at = int((ours_T - theirs_T).abs().nan_to_num(torch.inf).argmax())
    tried = f" (tried: {', '.join(str(of) for of in maps[:-1])})" if maps[1:] else ""
    raise ValueError(
        f"{folder}: the log-prob of a token is {float(theirs_T[at]):.5g} by the model's own "
        f"forward and {float(ours_T[at]):.5g} by its body and head, so {type(lm).__name__} does "
        f"something between or after them that no known field of its config names{tried}; it "
        "would be trained wrongly, so it is refused"
    )


def prove_scalar(module: TokenScalar, folder: str) -> None:
    """ValueError with both numbers where a scalar model does not give the logits of its model's own
    forward, and where tokens see those after them."""
    model = module.classifier
    row_1T = probe_row(model.config).to(model.device)
    every_1T = torch.ones_like(row_1T, dtype=torch.bool)
    with torch.no_grad():
        theirs = model(input_ids=row_1T, use_cache=False).logits.float().flatten() - module.offset
        ours_T = module(row_1T, every_1T)
        again_T = module(_other_end(row_1T), every_1T)
    ours = ours_T[-1:]
    # A head in bf16 rounds large scores coarsely.
    if not _gap(ours, theirs, model.dtype) <= ALLOWED[model.dtype] * max(
        1.0, float(theirs.abs().max())
    ):
        raise ValueError(
            f"{folder}: the score of a row is {(theirs + module.offset).tolist()} by the model's "
            f"own forward and {(ours + module.offset).tolist()} by its body and score head, so "
            f"{type(model).__name__} does something else between or after them; it would be "
            "trained wrongly, so it is refused"
        )
    _prove_causal(model, ours_T[:-1], again_T[:-1], folder)


def _prove_causal(model: Any, before_T: Tensor, after_T: Tensor, folder: str) -> None:
    """ValueError where what is read at tokens changed with the token after them: such a model sees
    the answer that it is trained to give, and padding too."""
    # Both passes are of one shape: no more than rounding is apart, where experts are given their
    # tokens otherwise.
    allowed = ALLOWED[model.dtype] * min(1.0, float(before_T.std()))
    if not _gap(before_T, after_T, model.dtype) <= allowed:
        raise ValueError(
            f"{folder}: {type(model).__name__} lets tokens see those after them (another last "
            "token changes what is read before it), as encoders do; a decoder is needed"
        )


def _other_end(row_1T: Tensor) -> Tensor:
    """The row with another last token, which is one of its own."""
    other_1T = row_1T.clone()
    other_1T[0, -1] = row_1T[0, 1]
    return other_1T


@torch.no_grad()
def transfer_probe(policy: Any, context_tokens: int) -> tuple[list[int], list[float]]:
    """A row of token ids, and the log-probs of all but its first at temperature 1, which engines
    have to give too.

    `policy`: a TokenPolicy, or what DeepSpeed makes of one; then every rank must call it. The row
    fits the context.
    """
    lm = getattr(policy, "module", policy).lm
    row_1T = probe_row(lm.config, min(TRANSFER_ROW, context_tokens - 1)).to(lm.device)
    logprobs_T = policy(row_1T, torch.ones_like(row_1T, dtype=torch.bool), temperature=1.0)[0]
    return row_1T[0].tolist(), logprobs_T.float().tolist()


def transfer_gap(found: Sequence[float], expected: Sequence[float], allowed: float) -> float:
    """Mean gap of the log-probs of a probe, in nats, where a token counts for at most `OUTLIER` x
    what is allowed.
    """
    return float(np.abs(np.subtract(found, expected)).clip(max=OUTLIER * allowed).mean())


def logit_maps(config: Any) -> list[LogitMap]:
    """What the fields of a config may mean: all of them first, nothing last.

    So a cap that a small model's logits do not come near is not taken for none.
    """
    config = config.get_text_config()
    given = {name: getattr(config, name, None) for name in (*SCALES, *SOFTCAPS)}
    given = {
        name: float(value)
        for name, value in given.items()
        if isinstance(value, int | float) and value
    }
    factors = [(*of(given[name], config), 1.0) for name, of in SCALES.items() if name in given]
    caps = [given[name] for name in SOFTCAPS if name in given]
    return list(
        dict.fromkeys(
            LogitMap(prod(some), cap) for cap in (*caps, None) for some in product(*factors)
        )
    )


def probe_row(config: Any, length: int = ROW) -> Tensor:
    """[1, length] ids from all over the vocabulary, without the pad id, by which classifiers tell
    the end of a row.

    It begins as text does, with the token of the beginning where the config names one: models
    gather their attention there.
    """
    config = config.get_text_config()
    size, first = config.vocab_size, getattr(config, "bos_token_id", None)
    ids = [(3 + 7919 * place) % size for place in range(length)]
    if isinstance(first, int) and 0 <= first < size:
        ids[0] = first
    pad = getattr(config, "pad_token_id", None)
    return torch.tensor([[(token + 1) % size if token == pad else token for token in ids]])


def _gap(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> float:
    gaps = (ours - theirs).abs()
    return float(gaps.max() if dtype == torch.float32 else gaps.mean())
