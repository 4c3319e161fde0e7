"""The models that an evaluation compares, of those that are there."""

from __future__ import annotations

from rayward.configs.stages import START, compared
from rayward.configs.stages import models as configured
from rayward.pipelines.run.folder import Run


def models_there(run: Run) -> dict[str, str]:
    """Names of the models that are made or given, the baseline first, and the part that made each;
    "" of one that is given.
    """
    config = run.config
    made = {name: part for name, part in configured(config).items() if run.done(part)}
    given = {START, *config.evaluate.models}
    return {name: made.get(name, "") for name in compared(config) if name in made or name in given}
