"""Settings of training outside RL: optimizer, SFT with C-RLFT, reward model, DPO."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from rayward.configs.sections.base import Count, Fraction, Positive, Section, StageSection
from rayward.configs.sections.objectives import (
    WITHOUT_REFERENCE,
    Ipo,
    Kto,
    ObjectiveName,
    Orpo,
    Simpo,
)


class Updates(Section):
    """AdamW under DeepSpeed: everything but the learning rate."""

    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Shape of the learning rate after the warm-up, over optimizer steps."""
    warmup_fraction: Fraction = 0.03
    """Share of the optimizer steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay, on matrices only."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW decay rates of the two moments."""
    eps: Positive = 1e-8
    """AdamW epsilon."""
    max_grad_norm: Positive = 1.0
    """Gradient norm above which gradients are scaled down."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO: what is split over ranks (0 nothing, 1 optimizer, 2 gradients, 3 weights); in
    bfloat16 2 or 3.
    """
    offload: bool = False
    """Keep ZeRO-2 and 3 optimizer state in host memory; only on GPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    micro_batch_tokens: Count = 8192
    """Tokens of one forward pass at most, padding included; changes speed and memory, never the
    result.
    """


class Optimizer(Updates):
    """AdamW under DeepSpeed."""

    learning_rate: Positive = 2e-5
    """Peak learning rate."""


class Validated(Section):
    """Looks at the held-out rows while a model trains."""

    validate_every: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps from one look at the held-out rows to the next; 0 looks after the last step
    only.
    """
    keep: Literal["last", "best"] = "last"
    """State of the model that is kept: the last, or the best of those that were looked at."""

    @model_validator(mode="after")
    def _best_is_of_several(self) -> Self:
        if self.keep == "best" and not self.validate_every:
            raise ValueError(
                "keep best chooses among the states that were looked at; give validate_every, in "
                "steps"
            )
        return self


class Supervised(Validated):
    """Supervised fine-tuning."""

    epochs: Count = 3
    """Passes over the rows."""
    samples_per_step: Count = 128
    """Rows of one optimizer step."""
    packing: bool | None = None
    """Rows back to back instead of padded; null: on the CPU, and on GPUs in bfloat16 where
    flash-attn is installed.
    """
    optimizer: Optimizer = Optimizer()
    """How the weights are updated."""


EXPERTS = ("Model: GPT-4", "gpt-4", "gpt4", "GPT4", "GPT4 Correct", "expert")


class Quality(Section):
    """C-RLFT: classes of answers with words of their own in the prompt and weights of their own in
    the loss.
    """

    conditioning: bool = False
    """Name the class of an answer in the role prefixes; RL and serving use the template's own
    words, the expert's.
    """
    weighting: bool = False
    """Multiply the loss of an answer by the weight of its class; own weights other than 0 and 1 are
    kept.
    """
    classes: dict[str, str] = dict.fromkeys(EXPERTS, "expert")
    """Class of each label of a conversation (`quality` in our records, `model` in ShareGPT); one of
    them is expert.
    """
    other: Annotated[str, Field(min_length=1)] = "sub_optimal"
    """Class of conversations with another label or none."""
    conditions: dict[str, Annotated[str, Field(min_length=1)]] = Field({"sub_optimal": "GPT3"})
    """Words of each class in the role prefixes, without the expert's, which are the template's."""
    weights: dict[str, Positive] = Field({"expert": 1.0, "sub_optimal": 0.1})
    """Weight of each class in the loss, where it is not 1; only their ratio matters."""

    @field_validator("classes", "conditions", "weights", mode="before")
    @classmethod
    def _given_over_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """Tables given in part keep the other entries of the default, as sections do."""
        default = cls.model_fields[str(info.field_name)].default
        return {**default, **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _every_class_is_known(self) -> Quality:
        names = {*self.classes.values(), self.other}
        if "expert" not in names:
            raise ValueError(
                "quality.classes has no label of the class expert, as which the model is asked"
            )
        if "expert" in self.conditions:
            raise ValueError(
                "quality.conditions names the expert, whose words are the template's; choose "
                "model.template instead"
            )
        for field, needed in (("conditions", names - {"expert"}), ("weights", names)):
            given, default = set(getattr(self, field)), set(Quality.model_fields[field].default)
            if odd := sorted(needed - given) or sorted(given - needed - default):
                fault = "names an unknown class"
                if odd[0] in needed:
                    fault = "has nothing for the class"
                raise ValueError(
                    f"quality.{field} {fault} {odd[0]!r}; the classes are "
                    f"{', '.join(sorted(names))}"
                )
        return self


class Sft(Supervised, StageSection):
    """Supervised fine-tuning on the conversations."""

    long_conversations: Literal["cut", "segment"] = "cut"
    """Cut a conversation at model.context_tokens, or divide it there into segments of whole
    questions and answers.
    """
    quality: Quality = Quality()
    """Answers of unequal quality."""


class Preferences(Validated):
    """Learning from rankings: what the reward model and DPO share."""

    epochs: Count = 1
    """Passes over the rankings; more than one overfits on most data."""
    rankings_per_step: Count = 32
    """Rankings of one optimizer step."""
    loss: Literal["plackett_luce", "pairs"] = "plackett_luce"
    """Likelihood of the whole ranking, or the mean Bradley-Terry loss of its pairs; equal for two
    answers.
    """
    ties: Literal["seed", "average"] = "seed"
    """Tied answers: in an order drawn by the seed, or the mean likelihood of all orders."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """With pairs: lead that a better answer should have, for each unit of a pair's margin or of a
    rank.
    """
    shared_prompts: bool | None = None
    """Compute the tokens that the answers of a ranking begin with once; null: where that takes
    fewer operations.
    """
    optimizer: Optimizer = Optimizer()
    """How the weights are updated."""

    @model_validator(mode="after")
    def _margin_is_of_pairs(self) -> Preferences:
        if self.margin and self.loss != "pairs":
            name = type(self).__name__.lower()
            raise ValueError(
                f"{name}.margin {self.margin:g} has no effect on {name}.loss {self.loss}; use "
                "loss pairs"
            )
        return self


class Reward(Preferences, StageSection):
    """Reward-model training."""

    zero_sum: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of a ranking's scores, which fixes the constant that rankings leave
    open.
    """
    path: str | None = None
    """Model to start from: a language model or a scalar sequence classifier; null takes the SFT
    model.
    """
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, warmup_fraction=0.05)
    """How the weights are updated."""


class Dpo(Preferences, StageSection):
    """Direct preference optimization and its kin: a policy straight from rankings or labelled
    answers, without a reward model in between.
    """

    objective: ObjectiveName = "dpo"
    """What is learned: dpo, ipo, simpo, orpo from rankings; kto from answers, each good or bad."""
    data: Literal["preferences", "samples"] = "preferences"
    """Rankings of data.preferences, or those that the reward model gave the answers of rejection
    sampling.
    """
    answers_per_prompt: Annotated[int, Field(ge=2)] = 2
    """Answers of a prompt with data samples, evenly from the best to the worst."""
    start: Literal["sft", "sample", "base"] = "sft"
    """Model to start from, which is the reference too: SFT's, that of rejection sampling, or the
    base model.
    """
    rankings_per_step: Count = 32
    """Rankings of one optimizer step; with kto, labelled answers."""
    beta: Positive = 0.1
    """With dpo, ipo, kto: implicit reward of a nat that the policy prefers an answer more than the
    reference does; larger stays closer.
    """
    loss: Literal["plackett_luce", "pairs"] = "pairs"
    """With objective dpo: likelihood of the whole ranking, or the mean Bradley-Terry loss of its
    pairs; equal for two answers.
    """
    ipo: Ipo = Ipo()
    """IPO's own numbers."""
    kto: Kto = Kto()
    """KTO's own numbers."""
    simpo: Simpo = Simpo()
    """SimPO's own numbers."""
    orpo: Orpo = Orpo()
    """ORPO's own numbers."""
    optimizer: Optimizer = Optimizer(learning_rate=5e-7, warmup_fraction=0.1)
    """How the weights are updated."""

    @model_validator(mode="after")
    def _settings_are_of_the_objective(self) -> Dpo:
        chosen = self.objective
        # A setting, and the objectives that read it.
        read: dict[str, tuple[str, ...]] = {
            "loss": ("dpo",),
            "margin": ("dpo",),
            "ties": ("dpo", "ipo", "simpo", "orpo"),
            "shared_prompts": ("dpo", "ipo", "simpo", "orpo"),
            "beta": ("dpo", "ipo", "kto"),
            **{name: (name,) for name in ("ipo", "kto", "simpo", "orpo")},
        }
        instead = {"simpo": "dpo.simpo.beta", "orpo": "dpo.orpo.lam"}
        for name, objectives in read.items():
            value = getattr(self, name)
            # A default is no choice: a config that is written out names every setting.
            if chosen in objectives or value == Dpo.model_fields[name].default or value is False:
                continue
            fix = f"only {', '.join(objectives)} read{'s' * (len(objectives) == 1)} it"
            if name == "beta":
                fix = f"its own number is {instead[chosen]}"
            shown = f" {value}" if not isinstance(value, Section) else ""
            raise ValueError(f"dpo.{name}{shown} has no effect on dpo.objective {chosen}; {fix}")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs of the model it starts from are learned against."""
        return self.objective not in WITHOUT_REFERENCE
