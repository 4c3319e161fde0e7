"""Records on their way through the prepare stage: beside the driver, not in it.

What is read is put away in chunks, small sets in memory and others in a file, and read again chunk
by chunk. The driver keeps a few bytes a row. Chunks stay pickled where they are only handed on: a
process that tokenises unpickles its own.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

IN_MEMORY_BYTES = 1 << 26
CHUNK_ROWS, CHUNK_CHARACTERS = 256, 1 << 21
"""A chunk ends with either: records of a book's length do not come 256 at a time."""


class Entry(NamedTuple):
    """A record, and the file and line that it is from; a generated one has none."""

    record: Any
    file: str = ""
    line: int = 0


class Spool:
    """Records in the order in which they came. `folder`: where a large one lies."""

    def __init__(self, folder: Path) -> None:
        # Without a name: it goes with the process, however that ends.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            IN_MEMORY_BYTES, dir=str(folder)
        )
        self._ends = [0]  # of the chunks, in bytes
        self._rows = [0]  # before each chunk, and at the end
        self._waiting: list[Entry] = []
        self._characters = 0
        self.rows = 0

    def add(self, entry: Entry) -> None:
        """Put a record behind the others."""
        self._waiting.append(entry)
        self._characters += sum(len(turn.content) for turn in entry.record.turns)
        self.rows += 1
        if len(self._waiting) >= CHUNK_ROWS or self._characters > CHUNK_CHARACTERS:
            self.close()

    def close(self) -> None:
        """Put away what waits for a chunk to be full: there is no more."""
        if self._waiting:
            pickle.dump(self._waiting, self._file, protocol=pickle.HIGHEST_PROTOCOL)
            self._ends.append(self._file.tell())
            self._rows.append(self.rows)
        self._waiting, self._characters = [], 0

    @property
    def size_bytes(self) -> int:
        """Of all chunks, about that of their text."""
        return self._ends[-1]

    def chunks(self) -> Iterator[bytes]:
        """The chunks, pickled lists of entries. The file is read: one loop at a time."""
        for start, end in zip(self._ends, self._ends[1:], strict=False):
            self._file.seek(start)
            yield self._file.read(end - start)

    def numbered_chunks(self) -> Iterator[tuple[bytes, int, int]]:
        """Each chunk with the number of its first record and how many it has."""
        pairs = zip(self._rows, self._rows[1:], strict=False)
        for chunk, (start, end) in zip(self.chunks(), pairs, strict=True):
            yield chunk, start, end - start

    def records(self) -> Iterator[Any]:
        """The records, one after another."""
        for chunk in self.chunks():
            for entry in pickle.loads(chunk):
                yield entry.record

    def drop(self) -> None:
        """Give the memory or the disk back."""
        self._file.close()
