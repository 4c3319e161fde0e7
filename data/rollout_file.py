"""Rollouts on disk: one parquet file an iteration, one row an answer, per-token columns as lists.

Any reader of parquet can look at them; `read` gives back what `write` was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayward.data.ragged import Ragged
from rayward.data.rollouts import PER_TOKEN, Rollouts

VERSION = b"weight_version"


def write(path: Path, rollouts: Rollouts, prompt_ids: Sequence[str]) -> None:
    """Write the answers; `prompt_ids` names the prompts that `prompt_index` counts."""
    columns = {
        "prompt_id": pa.array([prompt_ids[index] for index in rollouts.prompt_index]),
        "prompt_index": pa.array(rollouts.prompt_index.astype(np.int64)),
        "prompt": _lists(rollouts.prompts),
        "response": _lists(rollouts.responses),
        "finished": pa.array(rollouts.finished),
    }
    if rollouts.scores is not None:
        columns["score"] = pa.array(rollouts.scores.astype(np.float32))
    for name in PER_TOKEN:
        if (values := getattr(rollouts, name)) is not None:
            columns[name] = _lists(rollouts.responses.like(values.astype(np.float32)))
    table = pa.table(columns).replace_schema_metadata(
        {VERSION: str(rollouts.weight_version).encode()}
    )
    pq.write_table(table, path, compression="zstd")


def read(path: Path) -> tuple[Rollouts, list[str]]:
    """(answers with the columns that are there, the id of each answer's prompt).

    Raises ValueError for a file that holds no rollouts.
    """
    table = pq.read_table(path)
    needed = {"prompt_id", "prompt_index", "prompt", "response", "finished", "rollout_logprobs"}
    if missing := sorted(needed - set(table.column_names)):
        raise ValueError(
            f"{path} has no column {missing[0]!r}: it does not hold the rollouts of an RL stage"
        )
    flat = {
        name: _ragged(table[name]).values.astype(np.float32)
        for name in PER_TOKEN
        if name in table.column_names
    }
    scores = table["score"].to_numpy().astype(np.float32) if "score" in table.column_names else None
    rollouts = Rollouts(
        prompts=_ragged(table["prompt"]),
        responses=_ragged(table["response"]),
        prompt_index=table["prompt_index"].to_numpy(),
        finished=table["finished"].to_numpy(),
        weight_version=int((table.schema.metadata or {}).get(VERSION, b"0")),
        scores=scores,
        **flat,
    )
    return rollouts, table["prompt_id"].to_pylist()


def _lists(rows: Ragged) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(rows.offsets.astype(np.int32)), pa.array(rows.values))


def _ragged(column: pa.ChunkedArray) -> Ragged:
    rows = column.combine_chunks()
    lengths = np.diff(rows.offsets.to_numpy())
    return Ragged(rows.flatten().to_numpy(zero_copy_only=False), lengths.astype(np.int64))
