"""Rollouts on disk: one parquet file an iteration, one row a response, per-token columns as lists.

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

WEIGHT_VERSION_KEY = b"weight_version"
"""Key of the file's metadata: one version for all rows, as in `Rollouts`."""


def write(path: Path, rollouts: Rollouts, prompt_ids: Sequence[str]) -> None:
    """Write the responses; `prompt_ids` names the prompts that `prompt_index` counts."""
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
        values_N = getattr(rollouts, name)
        if values_N is not None:
            columns[name] = _lists(rollouts.responses.like(values_N.astype(np.float32)))
    metadata = {WEIGHT_VERSION_KEY: str(rollouts.weight_version).encode()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    # A reader, or a later try, sees the whole file or none.
    temporary = path.with_name(f".{path.name}.writing")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def read(path: Path) -> tuple[Rollouts, list[str]]:
    """(responses with the columns that are there, the id of each response's prompt).

    Raises ValueError for a file that holds no rollouts.
    """
    table = pq.read_table(path)
    # What sampling alone can give. A column that a scorer or the trainer fills in may be absent.
    needed = {"prompt_id", "prompt_index", "prompt", "response", "finished", "rollout_logprobs"}
    if missing := sorted(needed - set(table.column_names)):
        raise ValueError(
            f"{path} has no column {missing[0]!r}: it does not hold the rollouts of an RL stage"
        )
    per_token = {
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
        weight_version=int((table.schema.metadata or {}).get(WEIGHT_VERSION_KEY, b"0")),
        scores=scores,
        **per_token,
    )
    return rollouts, table["prompt_id"].to_pylist()


def _lists(rows: Ragged) -> pa.Array:
    # A ListArray has offsets of 32 bits: enough for the 2**31 - 1 tokens of an iteration.
    return pa.ListArray.from_arrays(pa.array(rows.offsets.astype(np.int32)), pa.array(rows.values))


def _ragged(column: pa.ChunkedArray) -> Ragged:
    rows = column.combine_chunks()  # a file has a chunk for each of its row groups
    # Lengths, not offsets: those of a slice need not start at 0; `flatten` starts where they do.
    lengths = np.diff(rows.offsets.to_numpy())
    return Ragged(rows.flatten().to_numpy(zero_copy_only=False), lengths.astype(np.int64))
