"""What a format is: the fields by which its rows are told, those that it reads, its reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from rayward.data.formats.readers.chat import Row
from rayward.data.formats.rows.fields import Tree, paths, tree
from rayward.data.records import Record

Read = Callable[[Row, list[str]], list[Record]]


@dataclass(frozen=True, slots=True)
class Format:
    """A shape of rows. A row has it if it has all of one set of `keys` and none of `never`.

    `convert(row, repairs)` gives the row's records or raises RowError, and appends the names of
    repairs made. Of several formats that fit, the one with the most keys is meant. One without keys
    is used where it is named.

    `reads`: the fields that `convert` uses, as dotted paths (see data/formats/rows/fields.py). What
    becomes of the others is for data/formats/beside.py to say. `tree` is the same by names.
    """

    name: str
    keys: tuple[frozenset[str], ...]
    never: frozenset[str]
    convert: Read
    reads: frozenset[str]
    tree: Tree = field(repr=False, compare=False)


def make_format(name: str, convert: Read, *keys: str, never: str = "", reads: str) -> Format:
    """`reads`: names or dotted paths with spaces between them; "@name" for turns, or one turn."""
    key_sets = tuple(frozenset(names.split()) for names in keys)
    read = paths(reads)
    return Format(name, key_sets, frozenset(never.split()), convert, read, tree(read))
