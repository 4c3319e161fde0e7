"""Settings of the data: files, or the generated world."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rayward.configs.sections.base import Count, Section


class DataSource(Section):
    """One file or folder of rows."""

    path: str
    """File or folder, relative to data.root, or hf:NAME[:CONFIG][:SPLIT]."""
    format: str = "auto"
    """Format name from data/formats/registry.py, or auto to detect it from the first row."""
    limit: Count | None = None
    """Records to take at most; null takes all."""


class ToyWorld(Section):
    """The generated instruction world of the quickstart (data/toy/toyworld.py)."""

    demonstrations: Count = 6000
    """Conversations for SFT."""
    rankings: Count = 2000
    """Prompts with K ranked answers for the reward model, of which a part is held out."""
    answers_per_ranking: Annotated[int, Field(ge=2, le=10)] = 7
    """Answers ranked per prompt (K)."""
    label_noise: Annotated[float, Field(ge=0, le=0.4)] = 0.1
    """Share of answer pairs whose order in the rankings contradicts the gold judge."""
    prompts: Count = 2000
    """Training prompts for rejection sampling and RL."""
    evaluation_prompts: Count = 320
    """Held-out prompts for evaluation, disjoint from every other set."""


LISTS = ("conversations", "preferences", "prompts", "evaluation_prompts")


class Data(Section):
    """Where rows come from: `toyworld`, or lists of sources, of which a config names those that its
    stages read.
    """

    root: str = "."
    """Folder that relative source paths start from."""
    toyworld: ToyWorld | None = None
    """Generate the quickstart world instead of reading files."""
    conversations: tuple[DataSource, ...] = ()
    """Chats for SFT."""
    preferences: tuple[DataSource, ...] = ()
    """Rankings or pairs for the reward model."""
    prompts: tuple[DataSource, ...] = ()
    """Prompts for rejection sampling and RL; conversations and rankings give theirs."""
    evaluation_prompts: tuple[DataSource, ...] = ()
    """Held-out prompts for evaluation; a training row that also asks one of them is dropped and
    counted.
    """
    sft_heldout_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.02
    """Share of the conversations kept for measuring SFT, chosen by a hash of the prompt."""
    heldout_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the preference rows kept for measuring what learns from them, chosen by a hash of
    the prompt.
    """
    processes: Count | None = None
    """Processes that tokenise large data in prepare; null takes one a core of the machine."""

    @model_validator(mode="after")
    def _one_world(self) -> Data:
        given = [name for name in LISTS if getattr(self, name)]
        if self.toyworld and given:
            raise ValueError(
                f"data.toyworld makes all data; remove data.{given[0]} or data.toyworld"
            )
        return self
