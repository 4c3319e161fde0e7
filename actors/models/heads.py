"""Hugging Face models as modules that read chosen positions of right-padded rows.

Rows are right-padded and causal, so real tokens never see a pad: no attention mask is needed,
positions count from 0, and only the chosen positions reach the head, flat.

Shapes: B = rows, T = longest row, N = chosen positions, H = hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from rayward.actors.models.attention import packed
from rayward.algorithms.logprobs import LogitMap, token_logprobs_from_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """A Hugging Face model without its head."""
    # Llama 4's language model names no body, and is its own `base_model`.
    return model.model if model.base_model is model else model.base_model


class TokenPolicy(nn.Module):
    """A causal language model that returns the log-probs of chosen tokens at a temperature."""

    def __init__(self, lm: PreTrainedModel, temperature: float = 1.0):
        super().__init__()
        self.lm = lm
        self.temperature = temperature
        # `prove_policy` finds the one of this model when it is loaded.
        self.logit_map = LogitMap()

    def forward(
        self,
        input_ids_BT: Tensor,
        chosen_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        row_masks: list[Tensor] | None = None,
        read_N: Tensor | None = None,
        targets_N: Tensor | None = None,
        with_entropy: bool = False,
        temperature: float | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """(logprobs_N, entropy_N or None), fp32, of the tokens where `chosen_BT` is True, in row
        order; column 0 has none.

        With `positions_BT`, B is 1 and the row is several back to back: one begins wherever they
        start at 0 again. With masks too, rows share their beginnings (actors/models/prefix.py), and
        `read_N` says where the states stand that `targets_N` follow. `temperature` in place of the
        policy's.
        """
        layout: dict[str, Any] = {}
        if row_masks is not None:
            # Positions alone do not bound such rows: every response goes on from its prompt's.
            layout = {"position_ids": positions_BT, "row_masks": row_masks}
        elif positions_BT is not None:
            layout = packed(positions_BT)
        hidden_BTH = body_of(self.lm)(
            input_ids=input_ids_BT, use_cache=False, **layout
        ).last_hidden_state
        # Only the N states that are read meet the head: logits of all B x T would be the largest
        # tensor of training.
        if read_N is not None:
            states_NH = hidden_BTH[0, read_N]
        else:
            assert chosen_BT is not None, "either chosen_BT or read_N says what is read"
            # The state at t predicts the token at t + 1, so both lose a column.
            predicts_BT = chosen_BT[:, 1:]
            states_NH = hidden_BTH[:, :-1][predicts_BT]
            targets_N = input_ids_BT[:, 1:][predicts_BT]
        assert targets_N is not None, "read_N comes with targets_N"
        # The head's weight is read, and its own forward is not called: the log-probs are made in
        # fp32, chunk by chunk, so that [N, vocabulary] is never whole.
        head = self.lm.get_output_embeddings()
        return token_logprobs_from_hidden(
            states_NH,
            head.weight,
            targets_N,
            temperature or self.temperature,
            bias=head.bias,
            with_entropy=with_entropy,
            logit_map=self.logit_map,
        )

    def external_parameters(self) -> list[nn.Parameter]:
        """Weights that `forward` reads outside their own module; ZeRO-3 has to gather them here."""
        head = self.lm.get_output_embeddings()
        return [head.weight] + ([head.bias] if head.bias is not None else [])


class TokenScalar(nn.Module):
    """A sequence classifier with one label, read at chosen positions: a reward model or critic."""

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        self.classifier = classifier

    def forward(
        self,
        input_ids_BT: Tensor,
        chosen_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        row_masks: list[Tensor] | None = None,
        read_N: Tensor | None = None,
    ) -> Tensor:
        """fp32 scores_N of the states after the tokens where `chosen_BT` is True.

        With positions and masks, B is 1 and the row is several back to back, which share their
        beginnings (actors/models/prefix.py) and are read at `read_N`; only after `attend_by_row`.
        """
        layout: dict[str, Any] = {}
        if positions_BT is not None:
            layout = {"position_ids": positions_BT, "row_masks": row_masks}
        hidden_BTH = body_of(self.classifier)(
            input_ids=input_ids_BT, use_cache=False, **layout
        ).last_hidden_state
        states_NH = hidden_BTH[chosen_BT] if read_N is None else hidden_BTH[0, read_N]
        # In fp32, also where the weights are bf16: its steps (256 between 1 and 2) are too coarse
        # for scores that are to be compared.
        head = self.classifier.score
        bias = None if head.bias is None else head.bias.float()
        scores_N1 = nn.functional.linear(states_NH.float(), head.weight.float(), bias)
        return scores_N1.squeeze(-1) - self.offset

    @property
    def offset(self) -> float:
        """What is taken from every score, so that the answers of SFT have a mean of 0."""
        # In the folder's config, so that it comes with the model and changes no weight.
        return float(getattr(self.classifier.config, "score_offset", 0.0))

    def external_parameters(self) -> list[nn.Parameter]:
        """The same as a policy's."""
        return list(self.classifier.score.parameters())


def last_tokens(lengths_B: np.ndarray) -> np.ndarray:
    """[B, T] True at the last token of each row."""
    return np.arange(lengths_B.max(initial=1))[None, :] == lengths_B[:, None] - 1


def response_tokens(
    prompt_lengths_B: np.ndarray, response_lengths_B: np.ndarray, shift: int = 0
) -> np.ndarray:
    """[B, T] True at the response tokens, or with `shift` 1 at the position before each."""
    # Shifted is what a critic reads: the state that a token was chosen in.
    ends = prompt_lengths_B + response_lengths_B
    positions = np.arange(ends.max(initial=1))[None, :] + shift
    return (positions >= prompt_lengths_B[:, None]) & (positions < ends[:, None])
