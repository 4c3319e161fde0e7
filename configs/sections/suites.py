"""Settings of an evaluation's suites: what `rayward judge` does, as parts of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rayward.configs.sections.base import Count, Section

RUN_JUDGES = ("reward", "reward_model")
"""What the judge of a suite may say for reward models of the run: the one that RL learns from, and
the second one, which is trained as the judge of evaluate."""
TAKEN = ("checkpoints", "tensorboard")
"""Folders that stage evaluate has of its own."""


class EvaluationSuite(Section):
    """A suite that the models of evaluate answer and a judge judges: a part evaluate/NAME of its
    own.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")]
    """Name of the part, evaluate/NAME."""
    kind: Literal["pairwise", "single"] = "pairwise"
    """What the judge does, as the commands under rayward judge: pairwise compares each model with
    the baseline, single rates each answer.
    """
    suite: Annotated[str, Field(min_length=1)]
    """Questions: alpaca, vicuna, mt_bench, arena_hard, ifeval, or a file, relative to data.root."""
    data: str | None = None
    """Folder that the questions of a named suite are in, relative to data.root, which null
    stands for.
    """
    limit: Count | None = None
    """The first so many questions; null is all."""
    judge: Annotated[str, Field(min_length=1)]
    """Judge: NAME@URL of an OpenAI-compatible API, a model's folder, MODULE:FUNCTION, or this run's
    reward or reward_model.
    """
    baseline: str | None = None
    """What pairwise compares with: a model by its name, or a file of answers, relative to
    data.root; null is the baseline of evaluate.
    """
    rules: Literal[
        "vicuna", "faireval", "ultralm", "alpaca_eval", "alpaca_eval_2", "mt_bench", "arena_hard"
    ] = "vicuna"
    """Whose way of comparing."""
    answer_options: tuple[str, ...] = ()
    """Further options of `rayward judge answers`, each word by itself."""
    judge_options: tuple[str, ...] = ()
    """Further options of the judging command, such as a price and a budget (of one comparison, and
    of the labelled pairs), each word by itself.
    """

    @model_validator(mode="after")
    def _fits(self) -> EvaluationSuite:
        if self.name in TAKEN:
            raise ValueError(
                f"name: {self.name} is a folder of stage evaluate; give it another name"
            )
        if self.kind == "single" and self.judge in RUN_JUDGES:
            raise ValueError(
                f"judge: {self.judge} scores answers and gives no ratings; kind single wants a "
                "language model"
            )
        if self.kind == "single" and self.baseline is not None:
            raise ValueError("baseline: kind single compares with none; leave it out")
        return self

    @property
    def part(self) -> str:
        """The part of the run that it is."""
        return f"evaluate/{self.name}"
