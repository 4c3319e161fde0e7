"""Proof at load: the log-probs and scores that we compute are those of the model's own forward.

Our modules take a model's body and its head apart, so that only chosen positions meet the head.
What a model does after its head (Cohere scales the logits, Gemma-2 caps them, Granite and MiniCPM3
divide) is then ours to do: it is read from the fields of the config that say it, and then held
against the model itself on a row of tokens. A model that differs is refused, since it would be
trained wrongly without a word.

Shapes: T = tokens of the probe (T - 1 log-probs), V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rayward.actors.models.heads import TokenPolicy, TokenScalar
from rayward.algorithms.logprobs import LogitMap

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

SCALES: dict[str, Callable[[float, PretrainedConfig], tuple[float, ...]]] = {
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
PROBE_TOKENS = 15  # of a probe at load; the shortest context is 16
TRANSFER_PROBE_TOKENS = 64  # of a probe of a transfer, where the context has room
OUTLIER = 10.0
"""A token of a probe counts at most so many times the gap that is allowed on the average.

Random tokens lie far from all that a model has learnt, and one of them may sit where rounding is
amplified a thousand times: seen, with SmolLM2 in fp32, is 6e-3 nats on one token beside 1e-5 on all
others. A weight that did not arrive moves the others too.
"""
ALLOWED_GAP = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest gap of a log-prob in fp32, mean gap in bf16, where the model's own forward rounds its
logits.
"""


def prove_tied(lm: PreTrainedModel, folder: str) -> None:
    """ValueError where a config ties head and embedding, and the weights hold a head besides.

    transformers then leaves them apart, engines take the embedding for both.
    """
    head = lm.get_output_embeddings()
    tied = getattr(lm.config, "tie_word_embeddings", False)
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
        logprobs_TV = (logits_TV / policy.temperature).log_softmax(-1)
        expected_T = logprobs_TV.gather(1, row_1T[0, 1:, None])[:, 0]
        maps = logit_maps(lm.config)
        for logit_map in maps:
            policy.logit_map = logit_map
            ours_T = policy(row_1T, every_1T)[0]
            if _gap(ours_T, expected_T, lm.dtype) <= ALLOWED_GAP[lm.dtype]:
                again_T = policy(_other_end(row_1T), every_1T)[0]
                # Without the log-prob of the last token, which is another token there.
                return _prove_causal(lm, ours_T[:-1], again_T[:-1], folder)
    # The numbers shown are of the last map, which changes nothing. NaN counts as the largest gap.
    worst = int((ours_T - expected_T).abs().nan_to_num(torch.inf).argmax())
    tried = f" (tried: {', '.join(str(logit_map) for logit_map in maps[:-1])})" if maps[1:] else ""
    raise ValueError(
        f"{folder}: the log-prob of a token is {float(expected_T[worst]):.5g} by the model's own "
        f"forward and {float(ours_T[worst]):.5g} by its body and head, so {type(lm).__name__} does "
        f"something between or after them that no known field of its config names{tried}; it "
        "would be trained wrongly, so it is refused"
    )


def prove_scalar(module: TokenScalar, folder: str) -> None:
    """ValueError with both numbers where scores are not the logits of the model's own forward.

    And where tokens see those after them.
    """
    model = module.classifier
    row_1T = probe_row(model.config).to(model.device)
    every_1T = torch.ones_like(row_1T, dtype=torch.bool)
    with torch.no_grad():
        # One score: transformers reads the last token that is not the pad id, here the last of all.
        expected = model(input_ids=row_1T, use_cache=False).logits.float().flatten() - module.offset
        ours_T = module(row_1T, every_1T)
        again_T = module(_other_end(row_1T), every_1T)
    ours = ours_T[-1:]
    # A head in bf16 rounds large scores coarsely.
    allowed = ALLOWED_GAP[model.dtype] * max(1.0, float(expected.abs().max()))
    # Not `>`, which is False where the gap is NaN.
    if not _gap(ours, expected, model.dtype) <= allowed:
        raise ValueError(
            f"{folder}: the score of a row is {(expected + module.offset).tolist()} by the model's "
            f"own forward and {(ours + module.offset).tolist()} by its body and score head, so "
            f"{type(model).__name__} does something else between or after them; it would be "
            "trained wrongly, so it is refused"
        )
    _prove_causal(model, ours_T[:-1], again_T[:-1], folder)


def _prove_causal(model: PreTrainedModel, before_T: Tensor, after_T: Tensor, folder: str) -> None:
    """ValueError where what is read at tokens changed with the token after them.

    Such a model sees the answer that it is trained to give, and padding too.
    """
    # Both passes are of one shape: no more than rounding is apart, where experts are given their
    # tokens otherwise. Less where the values themselves are small, as those of a new score head.
    allowed = ALLOWED_GAP[model.dtype] * min(1.0, float(before_T.std()))
    if not _gap(before_T, after_T, model.dtype) <= allowed:
        raise ValueError(
            f"{folder}: {type(model).__name__} lets tokens see those after them (another last "
            "token changes what is read before it), as encoders do; a decoder is needed"
        )


def _other_end(row_1T: Tensor) -> Tensor:
    """The row with its second token as its last: one that is no pad id, as all of a probe."""
    other_1T = row_1T.clone()
    other_1T[0, -1] = row_1T[0, 1]
    return other_1T


@torch.no_grad()
def transfer_probe(policy: Any, context_tokens: int) -> tuple[list[int], list[float]]:
    """A row of token ids, and the log-probs of all but its first that engines have to give too.

    At temperature 1. `policy`: a TokenPolicy, or what DeepSpeed makes of one; then every rank must
    call it. The row fits the context.
    """
    lm = getattr(policy, "module", policy).lm
    # One token less than the context: an engine has to generate at least one.
    row_1T = probe_row(lm.config, min(TRANSFER_PROBE_TOKENS, context_tokens - 1)).to(lm.device)
    logprobs_T = policy(row_1T, torch.ones_like(row_1T, dtype=torch.bool), temperature=1.0)[0]
    return row_1T[0].tolist(), logprobs_T.float().tolist()


def transfer_gap(logprobs: Sequence[float], expected: Sequence[float], allowed: float) -> float:
    """Mean gap of the log-probs of a probe, in nats, each clipped at `OUTLIER` * `allowed`."""
    return float(np.abs(np.subtract(logprobs, expected)).clip(max=OUTLIER * allowed).mean())


def logit_maps(config: PretrainedConfig) -> list[LogitMap]:
    """What the fields of a config may mean: all of them first, nothing last.

    So a cap that a small model's logits do not come near is not taken for none.
    """
    config = config.get_text_config()
    given: dict[str, float] = {}
    for name in (*SCALES, *SOFTCAPS):
        value = getattr(config, name, None)
        # 0, None and a table of a field that means another thing say nothing.
        if isinstance(value, int | float) and value:
            given[name] = float(value)
    # A field may be there and not be used, so each may also mean a factor of 1, and a cap none.
    factors = [
        (*meanings(given[name], config), 1.0) for name, meanings in SCALES.items() if name in given
    ]
    caps = [given[name] for name in SOFTCAPS if name in given]
    maps = [LogitMap(prod(chosen), cap) for cap in (*caps, None) for chosen in product(*factors)]
    return list(dict.fromkeys(maps))


def probe_row(config: PretrainedConfig, length: int = PROBE_TOKENS) -> Tensor:
    """[1, length] ids from all over the vocabulary, without the pad id.

    By that id classifiers tell the end of a row. The row begins as text does, with the token of the
    beginning where the config names one: models gather their attention there.
    """
    config = config.get_text_config()
    size, first = config.vocab_size, getattr(config, "bos_token_id", None)
    # Steps of a large prime: spread over the vocabulary, and the same row everywhere.
    ids = [(3 + 7919 * position) % size for position in range(length)]
    if isinstance(first, int) and 0 <= first < size:
        ids[0] = first
    pad = getattr(config, "pad_token_id", None)
    return torch.tensor([[(token + 1) % size if token == pad else token for token in ids]])


def _gap(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """Largest in fp32, where none may differ; mean in bf16, where rounding moves single tokens."""
    gaps = (ours - expected).abs()
    return float(gaps.max() if dtype == torch.float32 else gaps.mean())
