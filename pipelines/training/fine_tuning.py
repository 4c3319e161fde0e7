"""Supervised fine-tuning on conversations: all of stage sft, and the end of rejection sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rayward.actors.training.supervised import WeightedRows, sft_loop
from rayward.configs.plan import optimizer_steps
from rayward.configs.sections.training import Supervised
from rayward.data.packing import epoch_order
from rayward.data.records import Conversation
from rayward.data.templates.template import Encoded
from rayward.pipelines.rows.conversations import fit_conversations, sft_rows
from rayward.pipelines.rows.prepared_rows import weighted_rows
from rayward.pipelines.rows.renderer import Renderer, check_vocabulary
from rayward.pipelines.rows.show import show_batch
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.training.ray_train import job, train


def fine_tune(
    stage: Stage,
    model: str,
    rows: WeightedRows,
    training: Supervised,
    title: str,
    left_out: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Train `model` on the rows and leave the result in the stage's `model` folder.

    `left_out`: what is told of conversations that became no row, by rule.
    """
    config = stage.run.config
    renderer = Renderer.of_run(stage.run)
    check_vocabulary(renderer.tokenizer, model)
    # Always as stage sft has them, so that losses of different stages can be compared.
    heldout = weighted_rows(stage.run, "sft_heldout", renderer)
    if not len(rows.ids):
        raise StageError(
            f"{title}: no conversation is left to train on: {left_out or 'there are none'}"
        )
    steps = optimizer_steps(len(rows.ids), training.samples_per_step, training.epochs)
    # The rows of the first step, in the order in which the workers take them.
    first = epoch_order(len(rows.ids), config.seed, 0)[: training.samples_per_step]
    show_batch(
        [Encoded(rows.ids[row].tolist(), rows.weights[row].tolist()) for row in first],
        renderer.tokenizer,
    )
    work = job(stage, model, rows, heldout, training, packing=training.packing)
    reports = train(stage, title, sft_loop, work, steps, ("loss", "heldout_loss"))
    trained = sum(int((part.values > 0).sum()) for part in rows.weights.parts())
    return {
        "conversations": len(rows.ids),
        "trained_tokens_per_epoch": trained,
        "optimizer_steps": steps,
        "loss": reports["last"]["loss"],
        **(_heldout(reports, training) if len(heldout.ids) else {}),
        "heldout_conversations": len(heldout.ids),
        **({"left_out": dict(left_out)} if left_out else {}),
    }


def rows_of(
    conversations: Iterable[Conversation], renderer: Renderer
) -> tuple[WeightedRows, dict[str, int]]:
    """Rows of conversations in the template's own words, the expert's; what is left out by rule."""
    dropped: Counter[str] = Counter()
    rows = WeightedRows(*sft_rows(fit_conversations(conversations, renderer, dropped)[1]))
    left_out = {
        rule: count for rule, count in sorted(dropped.items()) if not rule.startswith("kept")
    }
    return rows, left_out


def _heldout(reports: dict[str, Any], training: Supervised) -> dict[str, Any]:
    """Losses before and after; after which step, where the best state is kept."""
    kept = reports["kept"][0]
    step = {"kept_step": kept["kept_step"]} if training.keep == "best" else {}
    return {
        "heldout_loss_before": reports["heldout_loss_before"][0],
        "heldout_loss": kept["heldout_loss"],
    } | step
