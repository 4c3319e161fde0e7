"""Settings of the base model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayward.configs.sections.base import Count, Section

CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on the CPU (vllm/v1/attention/backends/cpu_attn.py, 0.29)."""


class Scratch(Section):
    """A Llama-architecture model with random weights, for runs that start from nothing."""

    hidden_size: Count = 160
    """Width of the residual stream, in units."""
    intermediate_size: Count = 432
    """Width of the feed-forward layer, in units."""
    layers: Count = 4
    """Number of decoder layers."""
    heads: Count = 5
    """Number of attention heads; hidden_size must be a multiple of it."""
    vocab_size: Annotated[int, Field(ge=300)] = 512
    """Entries of the byte-level BPE vocabulary trained on the run's data."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Scratch:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}; "
                f"nearest that is: {self.heads * max(1, round(self.hidden_size / self.heads))}"
            )
        return self


class Model(Section):
    """The base model, its chat template and its numbers."""

    path: str | None = None
    """Hugging Face folder, or hub name ORG/NAME[@REVISION], of the base model; null builds
    `scratch`.
    """
    scratch: Scratch | None = None
    """Shape of a model with random weights; only with path null."""
    template: str = "openchat_3.5"
    """Chat template, by its name in data/templates/templates.toml; tokenizer is the one that the
    model brings.
    """
    context_tokens: Annotated[int, Field(ge=16)] = 2048
    """Longest prompt plus answer, in tokens; longer training rows are cut, longer prompts dropped
    and counted.
    """
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of weights and activations in training and rollouts."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model's files; only for models whose code you have read."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.scratch is None):
            raise ValueError(
                "give exactly one of model.path (a folder to start from) and model.scratch "
                "(random weights)"
            )
        if self.scratch and self.template == "tokenizer":
            raise ValueError(
                "model.template tokenizer takes the chat template of model.path; model.scratch "
                "has none"
            )
        return self
