"""Settings of the reward of answers."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rayward.configs.sections.base import Count, Fraction, Positive, Section


class RewardSource(Section):
    """One source of reward."""

    kind: Literal["model", "function", "http", "judge"] = "model"
    """Reward models of this run, a Python function, a service with POST /score, or a language model
    that rates.
    """
    name: str | None = None
    """Name in figures and errors; null is the kind."""
    weight: float = 1.0
    """Factor of its score in the sum that is the reward."""
    only: tuple[str, ...] = ()
    """Data sources (the field source of a prompt) whose prompts it scores, adding nothing to
    others; empty: all.
    """
    paths: tuple[str, ...] = ()
    """Kind model: folders or hub names of reward models; empty takes the model of stage reward."""
    ensemble: Literal["mean", "worst"] = "mean"
    """Kind model: how the scores of several paths become one."""
    target: str | None = None
    """Kind function MODULE:FUNCTION, http the address of POST /score, judge NAME@URL of an
    OpenAI-compatible API.
    """
    prompts: str | None = None
    """Kind judge: folder with rate_system.txt and rate_user.txt in place of
    data/feedback/prompts."""
    key: str | None = None
    """Environment variable with the key for an http service or a judge; null sends a judge
    OPENAI_API_KEY's, if set.
    """
    batch: Count = 64
    """Answers of one call."""
    parallel: Count = 1
    """Processes of a function; requests that a judge gets at once."""
    timeout_s: Positive = 60
    """Longest wait for one call of a function or one request, in seconds."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Further tries after a connection error, status 429 or 5xx, or a judge's reply without a
    rating.
    """
    empty_answer: float | None = None
    """Score of an answer without text; null asks the source, and many services refuse it."""
    tolerated: Fraction = 0.0
    """Share of a batch's answers that may go without a score; they get the mean of the others and
    are counted.
    """

    @property
    def modules(self) -> tuple[str, ...]:
        """Kind function: names of the module that holds it, to be tried in turn.

        Until version 0.1 ours was imported as `data.rules`, and configs of people say so still; a
        module of their own by that name comes first.
        """
        name = (self.target or "").partition(":")[0]
        return (name, f"rayward.{name}") if name.split(".")[0] == "data" else (name,)

    @property
    def title(self) -> str:
        """How figures and errors call it."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _fits_its_kind(self) -> RewardSource:
        if (self.target is None) != (self.kind == "model"):
            rule = "takes paths, no target"
            if self.kind != "model":
                rule = f"needs a target: {_TARGETS[self.kind]}"
            raise ValueError(f"a scoring source of kind {self.kind} {rule}")
        if self.target and not re.fullmatch(_TARGET_FORMS[self.kind], self.target):
            raise ValueError(
                f"target of a {self.kind} is {self.target!r}, expected {_TARGETS[self.kind]}"
            )
        for field, kinds in _KINDS.items():
            given = getattr(self, field) != RewardSource.model_fields[field].default
            if given and self.kind not in kinds.split():
                raise ValueError(
                    f"{field} has no effect on a scoring source of kind {self.kind}, only on "
                    f"{kinds}"
                )
        if self.ensemble == "worst" and len(self.paths) < 2:
            raise ValueError("ensemble worst needs two or more paths")
        return self


_KINDS = {
    "paths": "model",
    "ensemble": "model",
    "prompts": "judge",
    "key": "http judge",
    "retries": "http judge",
    "parallel": "function judge",
    "batch": "function http judge",
    "timeout_s": "function http judge",
    "empty_answer": "function http judge",
}
"""Which kinds have a field; the others have it for all."""
_TARGETS = {
    "function": "MODULE:FUNCTION",
    "http": "http://HOST:PORT/score",
    "judge": "NAME@http://HOST:PORT/v1",
}
_TARGET_FORMS = {"function": r"[\w.]+:\w+", "http": r"https?://.+", "judge": r".+@https?://.+"}


class Scoring(Section):
    """The reward of answers in rejection sampling and RL: the weighted sum of what its sources
    say.
    """

    sources: Annotated[tuple[RewardSource, ...], Field(min_length=1)] = (RewardSource(),)
    """Where scores come from."""
    functions: str = "."
    """Folder (a relative one from where the command runs) with modules of functions; installed
    packages come first.
    """

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[RewardSource, ...]) -> tuple[RewardSource, ...]:
        names = [source.title for source in sources]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ValueError(
                f"two scoring sources are called {twice[0]!r}; give them different names"
            )
        return sources
