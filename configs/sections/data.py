"""Settings of the data: files, or the generated world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from rayward.configs.sections.base import Count, Positive, Section


class DataSource(Section):
    """One file or folder of rows."""

    path: str
    """File or folder, relative to data.root, or hf:NAME[:CONFIG][:SPLIT]."""
    format: str = "auto"
    """Name of a format (docs/data.md), or auto: told from the fields of each file's first rows."""
    fields: dict[str, str] = Field({})
    """Rows in no known format: the field of each target, as in {prompt: question, response: answer,
    message.role: speaker}, where a field may be a path, choices[0].message.content, and ends in "?"
    if not every row has it.
    """
    roles: dict[str, str] = Field({})
    """With fields: user, assistant or system for names of speakers, as in {customer: user}."""
    limit: Count | None = None
    """Records to take at most, the first ones; null takes all."""
    weight: Positive | None = None
    """Share of this source in the rows that are trained, relative to the weights of the other
    sources of its list: rows are drawn by the seed, or repeated, while the list keeps its number of
    rows.
    """
    epochs: Positive | None = None
    """How often a pass over the list has each row of this source that is trained: 2 has all twice,
    0.5 a half of them, drawn by the seed, and null each once.
    """
    ignore: tuple[str, ...] = ()
    """Fields to do without, such as tools, that would otherwise set their rows aside."""
    imitate_good: bool = False
    """Take good answers of labelled rows (KTO) as conversations; bad ones are set aside."""


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


OWN_EVALUATION = "evaluation_prompts"


class Decontaminate(Section):
    """Leaves training rows out that share long n-grams with evaluation sets, as GPT-3 did."""

    ngram: Annotated[int, Field(ge=2)] = 13
    """Words in a row, in lower case and without punctuation, that no training row shares with an
    evaluation set.
    """
    against: Annotated[tuple[str, ...], Field(min_length=1)] = (OWN_EVALUATION,)
    """Evaluation sets: files or folders, relative to data.root, in any known format, hf:NAME, or
    evaluation_prompts for those of this config.
    """


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
    """Rankings or pairs for the reward model and DPO; KTO takes answers labelled good or bad."""
    prompts: tuple[DataSource, ...] = ()
    """Prompts for rejection sampling and RL; conversations and rankings give theirs."""
    evaluation_prompts: tuple[DataSource, ...] = ()
    """Held-out prompts for evaluation; a training row that also asks one of them is dropped and
    counted.
    """
    temperature: Positive | None = None
    """Draws the sources of each list in shares of rows^(1/temperature), as weights would: 1 is as
    they are, more makes the shares more equal.
    """
    decontaminate: Decontaminate | None = None
    """What training rows are compared with; null compares whole questions only."""
    sft_heldout_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.02
    """Share of the conversations kept for measuring SFT, chosen by a hash of the prompt."""
    heldout_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the preference rows kept for measuring what learns from them, chosen by a hash of
    the prompt.
    """
    processes: Count | None = None
    """Processes that tokenise large data in prepare; null takes one a core of the machine."""

    def at(self, path: str) -> str:
        """A path as it is opened: a relative one from root, a hub data set by its name."""
        return path if path.startswith("hf:") else str(Path(self.root) / path)

    @model_validator(mode="after")
    def _one_world(self) -> Data:
        given = [name for name in LISTS if getattr(self, name)]
        if self.toyworld and given:
            raise ValueError(
                f"data.toyworld makes all data; remove data.{given[0]} or data.toyworld"
            )
        return self

    @model_validator(mode="after")
    def _own_prompts(self) -> Data:
        own = self.decontaminate and OWN_EVALUATION in self.decontaminate.against
        if own and not self.toyworld and not self.evaluation_prompts:
            raise ValueError(
                "data.decontaminate.against has evaluation_prompts, and data.evaluation_prompts "
                "lists no source; name files, or add the list"
            )
        return self

    @model_validator(mode="after")
    def _preferences_compare(self) -> Data:
        for source in self.preferences:
            if source.imitate_good:
                raise ValueError(
                    f"data.preferences: imitate_good makes conversations of the rows of "
                    f"{source.path}, which compare nothing; list it under data.conversations, or "
                    "leave imitate_good out: KTO learns from labelled answers as they are"
                )
        return self

    @model_validator(mode="after")
    def _one_measure(self) -> Data:
        """How much of a source is drawn is said once."""
        for name in LISTS:
            sources = getattr(self, name)
            weights = [source for source in sources if source.weight is not None]
            epochs = [source for source in sources if source.epochs is not None]
            if name == "evaluation_prompts" and (weights or epochs):
                raise ValueError(
                    "data.evaluation_prompts is measured with, each row once; remove "
                    f"{'weight' if weights else 'epochs'}"
                )
            if weights and epochs:
                raise ValueError(
                    f"data.{name} has weight ({weights[0].path}) and epochs ({epochs[0].path}), "
                    "which both say how many rows are drawn; remove one of them"
                )
            if weights and len(weights) < len(sources):
                without = next(source.path for source in sources if source.weight is None)
                raise ValueError(
                    f"data.{name}: {weights[0].path} has a weight, and {without} has none; weights "
                    "are relative to each other, so give it to all sources of the list"
                )
            if len(weights) == 1:
                raise ValueError(
                    f"data.{name} has one source, whose weight is relative to nothing; remove it, "
                    "or give epochs or limit"
                )
            if self.temperature is not None and (weights or epochs):
                raise ValueError(
                    f"data.temperature and data.{name}.{'weight' if weights else 'epochs'} both "
                    "say how many rows are drawn; remove one of them"
                )
        trained = (self.conversations, self.preferences, self.prompts)
        if self.temperature is not None and all(len(sources) < 2 for sources in trained):
            raise ValueError("data.temperature: no list that is trained has several sources to mix")
        return self
