"""Responses as text: for people, for the report and for the judge of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rayward.algorithms.advantage import kl_k1
from rayward.data.records import Prompt
from rayward.data.rollouts import Rollouts
from rayward.pipelines.rows.renderer import Renderer

ROWS_WITH_TOKENS = 8  # responses of an iteration whose tokens are kept, for the report


def transcripts(
    renderer: Renderer, rollouts: Rollouts, prompts: list[Prompt]
) -> Iterator[dict[str, Any]]:
    """A row for each response, which must be scored; the first ones with what each token got.

    `prompts` are those that `prompt_index` counts.
    """
    assert rollouts.scores is not None
    for row in range(len(rollouts)):
        prompt = prompts[rollouts.prompt_index[row]]
        tokens = token_columns(renderer, rollouts, row) if row < ROWS_WITH_TOKENS else {}
        score = rollouts.scores[row]
        yield {
            "prompt_id": prompt.id,
            "prompt": prompt.turns[-1].content,
            "answer": renderer.answer(rollouts.responses[row]),
            # JSON has no NaN, which is a response that no source scores.
            "score": None if np.isnan(score) else float(score),
            "tokens": int(rollouts.responses.lengths[row]),
            "finished": bool(rollouts.finished[row]),
            **tokens,
        }


def token_columns(renderer: Renderer, rollouts: Rollouts, row: int) -> dict[str, list[Any]]:
    """Text, KL and advantage of each token of a response; nothing where one was not computed, as
    the KL in an iteration without the reference.
    """
    one = rollouts.take([row])
    policy, reference, advantages = one.policy_logprobs, one.reference_logprobs, one.advantages
    if policy is None or reference is None or advantages is None:
        return {}
    kl = kl_k1(torch.from_numpy(policy), torch.from_numpy(reference)).tolist()
    return {
        # Token by token: decoding the whole would not say where one ends.
        "pieces": [renderer.tokenizer.decode([token]) for token in one.responses.values],
        "kl": [round(value, 4) for value in kl],
        "advantages": [round(value, 4) for value in advantages.tolist()],
    }
