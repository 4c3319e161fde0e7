"""Rows that no reader knows, by a map from what is wanted to where it stands in a row.

    prompt=question,response=answer,system=sys?
    messages=conversation,message.role=speaker,message.content=text
    prompt=data.question,reference=reward_model.ground_truth

Left of "=" is a target, one of TARGETS; right of it the path of a field: names with dots, and
places in lists, [0] the first and [-1] the last. A name that has dots itself is taken whole. A row
without the field is set aside, except where the path ends in "?"; null and empty text count as
absent. What the targets make together is in `_kind`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rayward.data.formats.beside import reference_of
from rayward.data.formats.known.formats import Format
from rayward.data.formats.readers.answers import only_answer
from rayward.data.formats.readers.chat import Row, label_of
from rayward.data.formats.rows.field_paths import look_up, steps
from rayward.data.formats.rows.fields import EVERYTHING, Tree, verdict_of
from rayward.data.formats.rows.meaning import WEIGHTS
from rayward.data.formats.rows.turns import content_of, prompt_turns, role_of, weight_of
from rayward.data.records import (
    Conversation,
    Labelled,
    Preference,
    Prompt,
    Record,
    Role,
    RowError,
    Turn,
    describe,
    list_of,
    number_of,
    object_of,
    text_of,
)

NAME = "mapped"
TARGETS = {
    "prompt": "the question: text, or the messages up to it",
    "response": "the answer to learn: text, or a message",
    "messages": "the conversation: messages, or texts of user and assistant in turn",
    "message.role": "who speaks, within a message (default role)",
    "message.content": "what is said, within a message (default content)",
    "message.weight": "its share in the loss, within a message (default weight)",
    "system": "text of the system turn",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "label": "whether the answer is a good one: true or false, 1 or 0",
    "reference": "an answer known to be right, beside a prompt",
    "weight": "share of the answer in the loss",
    "id": "name of the row",
    "source": "where the row is from",
}
ANYWHERE = {"system", "id", "source"}
IN_MESSAGES = {"message.role", "message.content", "message.weight"}
# (what is made, targets that must be there, targets that may be beside them and ANYWHERE). The
# question of all is either prompt or messages.
KINDS: tuple[tuple[str, frozenset[str], frozenset[str]], ...] = (
    ("conversation", frozenset({"prompt", "response"}), frozenset({"weight"})),
    ("conversation", frozenset({"messages", "response"}), frozenset({"weight"})),
    ("preference", frozenset({"prompt", "chosen", "rejected"}), frozenset()),
    ("preference", frozenset({"messages", "chosen", "rejected"}), frozenset()),
    ("labelled", frozenset({"prompt", "response", "label"}), frozenset()),
    ("labelled", frozenset({"messages", "response", "label"}), frozenset()),
    ("labelled", frozenset({"messages", "label"}), frozenset()),
    ("prompt", frozenset({"prompt"}), frozenset({"reference"})),
    ("messages", frozenset({"messages"}), frozenset({"reference"})),
)
WHOLE = {"system", "label", "reference", "weight", "id", "source"}
"""Targets whose field is one value; the others may hold messages."""


@dataclass(frozen=True, slots=True)
class FieldMap:
    """`fields`: path by target. `roles`: role by the name that the data have for it."""

    fields: Mapping[str, str]
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError(f"roles without fields map nothing; {_targets()}")
        for target, path in self.fields.items():
            if target not in TARGETS:
                raise ValueError(f"unknown target {target!r} of a field; {_targets()}")
            if not path.removesuffix("?"):
                raise ValueError(f"{target} names no field; give it one, as in {target}=FIELD")
        for name, role in self.roles.items():
            if role not in ("system", "user", "assistant"):
                raise ValueError(f"the role {name!r} is {role!r}; expected system, user, assistant")
        _kind(self.fields)

    @property
    def format(self) -> Format:
        """The format whose rows are read so."""
        return Format(NAME, (), frozenset(), self.records, frozenset(self.fields), self._tree())

    def _tree(self) -> Tree:
        """What is read of a row, as data/formats/rows/fields.py has it."""
        root: Tree = {}
        whole: list[Tree] = []
        for target in self.fields.keys() - IN_MESSAGES:
            path = self._path(target)
            root.setdefault(path, {})  # a name that has dots itself
            node = _at(root, path)
            if target in WHOLE:
                whole.append(node)
                continue
            weights = (self._inner("weight"),) if "message.weight" in self.fields else WEIGHTS
            for path in (self._inner("role"), self._inner("content"), *weights):
                _at(node, path)
        for node in whole:
            if node:  # also read in parts, by other targets: these are not all of it
                node[EVERYTHING] = {}
        return root

    def records(self, row: Row, repairs: list[str]) -> list[Record]:
        """The record of a row. RowError where the row does not have what is named."""
        fields, kind = self.fields, _kind(self.fields)
        source = self._label(row, "source") or NAME
        name = self._label(row, "id")
        turns = self._question(row)
        if kind == "preference":
            chosen, rejected = (self._text(row, side) for side in ("chosen", "rejected"))
            return [Preference(turns, chosen, rejected, source=source, id=name)]
        if kind == "labelled":
            if "response" in fields:
                answer = self._text(row, "response")
                return [Labelled(turns, answer, *self._good(row), source, name)]
            if not turns or turns[-1].role != "assistant":
                last = turns[-1].role if turns else "no turn"
                raise RowError(fields["messages"], last, "assistant last", "no answer to label")
            answer = only_answer(turns[-1:], self._path("messages"))
            return [Labelled(turns[:-1], answer, *self._good(row), source, name)]
        if kind == "conversation":
            return [Conversation((*turns, self._weighted_answer(row)), source, name)]
        reference = self._value(row, "reference")
        if kind == "messages" and turns and turns[-1].role == "assistant":
            if reference is not None:
                expected = "a prompt, whose last turn is the user's"
                raise RowError(
                    self._path("messages"), "assistant last", expected, "reference of no prompt"
                )
            return [Conversation(turns, source, name)]
        if reference is not None:
            reference = reference_of(reference, self._path("reference"))
        return [Prompt(turns, source, name, reference=reference)]

    # ---- parts of a row

    def _path(self, target: str) -> str:
        return self.fields[target].removesuffix("?")

    def _value(self, row: Row, target: str) -> Any:
        """What stands at the path of a target; None for nothing and where it is not named."""
        if target not in self.fields:
            return None
        found, value = look_up(row, self._path(target))
        if not found and not self.fields[target].endswith("?"):
            expected = f"the field of {target}"
            raise RowError(self._path(target), "no such field", expected, f"no field for {target}")
        return None if isinstance(value, str) and not value.strip() else value

    def _label(self, row: Row, target: str) -> str:
        if target not in self.fields:
            return ""
        return label_of({self._path(target): self._value(row, target)}, self._path(target))

    def _good(self, row: Row) -> tuple[bool]:
        value = self._value(row, "label")
        verdict = verdict_of(value)
        if verdict is None:
            expected = "true or false, 1 or 0"
            raise RowError(self._path("label"), describe(value), expected, "no verdict")
        return (verdict,)

    def _question(self, row: Row) -> tuple[Turn, ...]:
        target = "prompt" if "prompt" in self.fields else "messages"
        value, path = self._value(row, target), self._path(target)
        if target == "prompt" and not isinstance(value, list | tuple | dict):
            turns = prompt_turns(value, path)
        else:
            turns = self._messages(value, path)
        system = self._value(row, "system")
        if system is None:
            return turns
        if turns and turns[0].role == "system":
            raise RowError(
                self._path("system"), describe(system), "one system text only", "two system texts"
            )
        return (Turn("system", text_of(system, self._path("system"))), *turns)

    def _weighted_answer(self, row: Row) -> Turn:
        """The answer with its loss weight: the row's, or that of its own message."""
        answer, weight = self._answer(row, "response"), self._value(row, "weight")
        if weight is None:
            return answer
        weight = number_of(weight, self._path("weight"))
        if answer.weight not in (None, weight):
            found, expected = f"{weight:g} beside {answer.weight:g}", "one loss weight only"
            raise RowError(self._path("weight"), found, expected, "two loss weights")
        return replace(answer, weight=weight)

    def _text(self, row: Row, target: str) -> str:
        """An answer that is compared or labelled, which is learned as a whole or not at all."""
        return only_answer((self._answer(row, target),), self._path(target))

    def _answer(self, row: Row, target: str) -> Turn:
        value, path = self._value(row, target), self._path(target)
        if not isinstance(value, list | tuple | dict):
            return Turn("assistant", text_of(value, path))
        turns = self._messages(value, path)
        # The whole conversation, where it repeats the prompt, too.
        asked = tuple((turn.role, turn.content) for turn in turns[:-1])
        question = tuple((turn.role, turn.content) for turn in self._question(row))
        if not turns or turns[-1].role != "assistant" or asked not in ((), question):
            expected = "an assistant message, alone or after the prompt"
            raise RowError(
                path, f"{len(turns)} messages", expected, "answer does not follow the prompt"
            )
        return turns[-1]

    def _messages(self, value: Any, path: str) -> tuple[Turn, ...]:
        if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
            try:
                value = json.loads(value)
            except ValueError:
                raise RowError(path, describe(value), "messages", "no messages") from None
        entries = [value] if isinstance(value, dict) else list_of(value, path)
        if entries and all(isinstance(entry, str) for entry in entries):
            sides: tuple[Role, Role] = ("user", "assistant")
            return tuple(
                Turn(sides[index % 2], text_of(text, f"{path}[{index}]"))
                for index, text in enumerate(entries)
            )
        return tuple(self._turn(entry, f"{path}[{i}]") for i, entry in enumerate(entries))

    def _inner(self, part: str) -> str:
        """Where a part of a message stands in it."""
        return self.fields.get(f"message.{part}", part).removesuffix("?")

    def _turn(self, entry: Any, where: str) -> Turn:
        entry = object_of(entry, where)
        parts = {}
        for part in ("role", "content"):
            found, value = look_up(entry, self._inner(part))
            field = f"{where}.{self._inner(part)}"
            if not found:
                target = f"the field of message.{part}"
                raise RowError(field, "no such field", target, f"no message.{part}")
            parts[part] = (value, field)
        name, place = parts["role"]
        if isinstance(name, str):
            name = self.roles.get(name, name)
        if "message.weight" in self.fields:
            weight = look_up(entry, self._inner("weight"))[1]
            if weight is not None:
                weight = number_of(weight, f"{where}.{self._inner('weight')}")
        else:
            weight = weight_of(entry, where)
        return Turn(role_of(name, place), content_of(*parts["content"]), weight)


def _at(root: Tree, path: str) -> Tree:
    """The node of a path below `root`, made where it is missing; places in lists are "[0]"."""
    node = root
    for step in steps(path):
        node = node.setdefault(step if isinstance(step, str) else f"[{step}]", {})
    return node


def field_map(fields: str, roles: str = "") -> FieldMap:
    """The map of "TARGET=FIELD,TARGET=FIELD" and "NAME=ROLE,..."; ValueError for anything else."""
    return FieldMap(_pairs(fields, "TARGET=FIELD"), _pairs(roles, "NAME=ROLE"))


def _pairs(text: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not (name and sign and value):
            raise ValueError(f"{part!r} is not {form}; {_targets()}")
        if name in pairs:
            raise ValueError(f"{name} is given twice: {pairs[name]} and {value}")
        pairs[name] = value
    return pairs


def _kind(fields: Mapping[str, str]) -> str:
    """The kind of record that the targets make. ValueError where they make none."""
    given = set(fields) - ANYWHERE - IN_MESSAGES
    for kind, needed, optional in KINDS:
        if needed <= given <= needed | optional:
            return kind
    raise ValueError(f"{', '.join(fields)} make no record together; {_targets()}")


def _targets() -> str:
    makes = "; ".join(
        " + ".join(sorted(needed, key=list(TARGETS).index))
        + (f" (and {', '.join(sorted(optional))})" if optional else "")
        for _, needed, optional in KINDS
    )
    return (
        f"targets: {', '.join(TARGETS)}; a record is made of {makes}; each may have "
        + ", ".join(target for target in TARGETS if target in ANYWHERE)
    )
