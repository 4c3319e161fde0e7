"""Operations of an RL iteration, from the shapes of the models and the lengths of the batch.

They are counted as usual: 2 a parameter and token forward, 6 in training (arXiv:2001.08361), and
what that count leaves out: attention over the tokens before, and the head, which only the tokens of
responses reach and which training computes once more instead of keeping its logits
(algorithms/sequence.py). A multiplication and an addition are two operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A decoder in numbers."""

    layers: int
    attention_width: int
    """Heads x head size."""
    body_parameters: int
    """Weights of all layers."""
    hidden_size: int
    vocab_size: int
    tied: bool = False
    """One matrix for embedding and head."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From the config.json of a model of the Llama family. KeyError names what it lacks."""
        layers, hidden = config["num_hidden_layers"], config["hidden_size"]
        heads = config["num_attention_heads"]
        head_size = config.get("head_dim") or hidden // heads
        width = heads * head_size
        key_width = (config.get("num_key_value_heads") or heads) * head_size
        # Queries and output; keys and values, which groups of heads may share.
        attention = 2 * hidden * width + 2 * hidden * key_width
        # A gated MLP has three matrices. Norms and biases are too few to count.
        body = layers * (attention + 3 * hidden * config["intermediate_size"])
        return cls(
            layers,
            width,
            body,
            hidden,
            config["vocab_size"],
            bool(config.get("tie_word_embeddings")),
        )

    @property
    def head_parameters(self) -> int:
        """Weights of the head, which are as many as the embedding's."""
        return self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        return self.body_parameters + self.head_parameters * (1 if self.tied else 2)

    def body_flops(self, tokens: float, seen: float = 0.5) -> float:
        """Forward operations of one row through the layers.

        `seen`: the share of the row that a token sees on the average, a half where all is causal.
        """
        # Attention takes 4 operations a pair of tokens and unit of width: 2 for the product of
        # query and key, 2 for the weighted sum of values.
        return (
            2.0 * self.body_parameters * tokens
            + 4.0 * seen * self.layers * self.attention_width * tokens**2
        )

    def head_flops(self, tokens: int) -> float:
        return 2.0 * self.head_parameters * tokens


@dataclass(frozen=True)
class Load:
    """What one iteration has to do."""

    policy: Shape
    prompts: int
    samples_per_prompt: int
    prompt_tokens: int
    answer_tokens: int
    """Mean lengths."""
    epochs: int = 1
    micro_batch_tokens: int = 8192
    reward: Shape | None = None
    """Reward model; None: the reward takes no time of these machines."""
    critic: Shape | None = None
    reference: bool = True
    trainer_logprobs: bool = True
    """Whether the trainer computes old log-probs, or takes those of the engine."""
    gradient_checkpointing: bool = False
    shared_prompts: bool = False
    """Whether scoring and training may read a prompt once for its answers, where that takes fewer
    operations.
    """
    bytes_per_weight: int = 2

    @property
    def answers(self) -> int:
        return self.prompts * self.samples_per_prompt

    @property
    def row_tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens

    @property
    def generated_tokens(self) -> int:
        return self.answers * self.answer_tokens

    def rows(self, shape: Shape) -> tuple[float, float, float]:
        """(number, tokens of each, share that a token sees) of the rows that scoring and training
        read.

        Rows that share a prompt hold as many of its answers as a micro-batch has room for, and a
        mask hides one answer from another: attention is computed to all of the row
        (actors/models/prefix.py).
        """
        alone = (float(self.answers), float(self.row_tokens), 0.5)
        if not self.shared_prompts:
            return alone
        # A row has at least one answer, also where the micro-batch has no room for it.
        room = max(1, (self.micro_batch_tokens - self.prompt_tokens) // max(1, self.answer_tokens))
        count = self.prompts * ceil(self.samples_per_prompt / room)
        together = (float(count), self.prompt_tokens + self.generated_tokens / count, 1.0)
        return min(alone, together, key=lambda rows: rows[0] * shape.body_flops(*rows[1:]))

    def rows_flops(self, shape: Shape) -> float:
        """Forward operations of all of them through the layers."""
        number, tokens, seen = self.rows(shape)
        return number * shape.body_flops(tokens, seen)

    @property
    def calls(self) -> float:
        """Layer calls over a micro-batch, for one model and one forward pass over the answers."""
        number, tokens, _ = self.rows(self.policy)
        return self.policy.layers * max(1.0, number * tokens / self.micro_batch_tokens)

    def forward_flops(self) -> dict[str, float]:
        """Operations of generation and of each phase of scoring."""
        head = self.answers * self.policy.head_flops(self.answer_tokens)
        scored = self.rows_flops(self.policy) + head
        # The engines read a prompt once for all its answers, out of their prefix cache.
        prompt = self.policy.body_flops(self.prompt_tokens)
        generated = self.answers * self.policy.body_flops(self.row_tokens)
        generated -= (self.answers - self.prompts) * prompt
        return {
            "generate": generated + head,
            "logprobs": scored * self.trainer_logprobs,
            "reference": scored * self.reference,
            "values": self.rows_flops(self.critic) if self.critic else 0.0,
            "reward": self.rows_flops(self.reward) if self.reward else 0.0,
        }

    def training_flops(self) -> dict[str, float]:
        """Operations of the updates, where backward is twice forward."""
        # With checkpointing the layers compute their activations once more for the backward pass;
        # the head always does, see the top of the file.
        passes = 4.0 if self.gradient_checkpointing else 3.0
        head = self.answers * self.policy.head_flops(self.answer_tokens)
        critic = self.rows_flops(self.critic) if self.critic else 0.0
        policy = passes * self.rows_flops(self.policy) + 4.0 * head
        return {
            "policy_update": self.epochs * policy,
            "critic_update": self.epochs * passes * critic,
        }
