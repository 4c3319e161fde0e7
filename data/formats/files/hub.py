"""Rows of a data set by its Hugging Face name, streamed: "hf:NAME[:CONFIG][:SPLIT]".

`datasets` reads them. NAME may also be a local folder or file that `datasets` can load.
"hf:NAME::SPLIT" names a split of the standard configuration. Without a split, the only one is
meant, or "train".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rayward.data.records import RowError

BUILDERS = {".json": "json", ".jsonl": "json", ".gz": "json", ".parquet": "parquet", ".csv": "csv"}


def hub_rows(name: str, columns: frozenset[str] | None = None) -> Iterator[tuple[int, Any]]:
    """(number, row) of a data set; what breaks while reading is a RowError, and the last row.

    All its columns are read, whichever are asked for.

    ValueError: a name with too many parts, or no such split. Errors of `datasets` before the first
    row, such as an unknown name, are raised as they come.
    """
    number = 0
    stream = iter(_open(name))
    while True:
        number += 1
        # Each format's reader in `datasets` raises errors of its own kinds, so any is caught. The
        # rows before it are good; before the first row it is the caller's mistake, and raised.
        try:
            row = next(stream, None)
        except Exception as error:
            if number == 1:
                raise
            found = str(error)[:80]
            yield number, RowError("file", found, "rows that `datasets` can read", "damaged file")
            return
        if row is None:
            return
        yield number, row


def _open(name: str) -> Any:
    from datasets import load_dataset

    # Two empty parts fill in for those left out; of a full name, they are left over in `more`.
    path, config, split, *more = [*name.removeprefix("hf:").split(":"), "", ""]
    if not path or any(more):
        raise ValueError(f"{name!r} is not of the form hf:NAME[:CONFIG][:SPLIT]")
    file = Path(path)
    if file.is_file():
        builder = BUILDERS.get(file.suffix, "text")
        splits = load_dataset(builder, config or None, data_files=path, streaming=True)
    else:
        splits = load_dataset(path, config or None, streaming=True)
    wanted = split or (next(iter(splits)) if len(splits) == 1 else "train")
    if wanted not in splits:
        raise ValueError(
            f"{name}: no split {wanted!r}; it has {', '.join(splits)}: hf:{path}:{config}:SPLIT"
        )
    return splits[wanted]
