"""Records on their way through the prepare stage: beside the driver, not in it.

What is read is put away in chunks, small sets in memory and others in a file, and read again chunk
by chunk. The driver keeps a few bytes a row. Chunks stay pickled where they are only handed on: a
process that tokenises unpickles its own.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, NamedTuple

IN_MEMORY_BYTES = 1 << 26
CHUNK_ROWS, CHUNK_CHARACTERS = 256, 1 << 21
"""A chunk ends with either: records of a book's length do not come 256 at a time."""


class Entry(NamedTuple):
    """A record, and the file and line that it is from; a generated one has none.

    `source`: the number of its source in the list.
    """

    record: Any
    file: str = ""
    line: int = 0
    source: int = 0


class Chunks:
    """Pickled chunks of rows. `folder`: where many of them lie. All are added, then they are read.

    `starts`: the number of the first row of each chunk, and how many rows there are.
    """

    def __init__(self, folder: Path) -> None:
        # Without a name: it goes with the process, however that ends.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(  # noqa: SIM115
            IN_MEMORY_BYTES, dir=str(folder)
        )
        self._ends = [0]  # in bytes
        self.starts = [0]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def add(self, chunk: Any, rows: int) -> None:
        """Put a chunk behind the others."""
        pickle.dump(chunk, self._file, protocol=pickle.HIGHEST_PROTOCOL)
        self._ends.append(self._file.tell())
        self.starts.append(self.starts[-1] + rows)

    @property
    def size_bytes(self) -> int:
        """Of all chunks."""
        return self._ends[-1]

    def __getitem__(self, number: int) -> bytes:
        """A chunk, pickled."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number])

    def drop(self) -> None:
        """Give the memory or the disk back."""
        self._file.close()


class Spool:
    """Records in the order in which they came. `folder`: where a large one lies."""

    def __init__(self, folder: Path) -> None:
        self._chunks = Chunks(folder)
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
            self._chunks.add(self._waiting, len(self._waiting))
        self._waiting, self._characters = [], 0

    @property
    def size_bytes(self) -> int:
        """Of all chunks, about that of their text."""
        return self._chunks.size_bytes

    def numbered_chunks(self) -> Iterator[tuple[bytes, int, int]]:
        """Each chunk, a pickled list of entries, with the number of its first record and how many
        it has.
        """
        for number, (start, end) in enumerate(pairwise(self._chunks.starts)):
            yield self._chunks[number], start, end - start

    def entries(self) -> Iterator[Entry]:
        """The records and where they are from, one after another."""
        for chunk, _, _ in self.numbered_chunks():
            yield from pickle.loads(chunk)

    def records(self) -> Iterator[Any]:
        """The records, one after another."""
        return (entry.record for entry in self.entries())

    def drop(self) -> None:
        """Give the memory or the disk back."""
        self._chunks.drop()
