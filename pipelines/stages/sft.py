"""Stage sft: supervised fine-tuning of the base model on conversations, loss on answers only."""

from __future__ import annotations

from typing import Any

from rayward.cluster.connect import connect
from rayward.configs.plan import inputs
from rayward.pipelines.rows.prepared_rows import weighted_rows
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import begin
from rayward.pipelines.training.fine_tuning import fine_tune


def train_sft(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "sft", inputs(config, "sft"))
    if stage is None:
        return None
    connect(config.cluster)
    rows = weighted_rows(run, "conversations", Renderer.of_run(run))
    metrics = fine_tune(stage, run.base, rows, config.sft, "sft")
    table("sft", metrics)
    return stage.finish(metrics)
