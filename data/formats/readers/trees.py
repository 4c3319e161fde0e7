"""Trees of messages, as OpenAssistant published them (Köpf et al. 2023): one row a tree.

{"message_tree_id", "prompt": {"text", "role", "replies": [{"text", "role", "rank", "replies"}]}}:
several answers to a message, of which rank 0 is the best, and several messages to an answer.
Deleted messages, and those that reviewers did not let pass, are left out with what follows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayward.data.formats.readers.chat import Row, label_of
from rayward.data.formats.rows.turns import role_of
from rayward.data.records import (
    Conversation,
    Ranking,
    Record,
    RowError,
    Turn,
    number_of,
    object_of,
    objects_of,
    text_of,
)

Reply = tuple[str, Row]
"""Where a message stands, and the message."""
Ranked = list[tuple[float, Reply]]
Turns = tuple[Turn, ...]


def oasst_trees(row: Row, repairs: list[str]) -> list[Record]:
    """A ranking for each message with two or more ranked answers.

    A tree without any is its conversations, as `oasst_conversations` has them.
    """
    label = label_of(row, "message_tree_id")
    records: list[Record] = []
    for turns, replies in _asked(_root(row), (), repairs):
        ranked = _ranked(replies)
        if len(ranked) < 2:
            continue
        repairs += ["left out answer without a rank"] * (len(ranked) < len(replies))
        answers = tuple(text_of(reply.get("text"), f"{at}.text") for _, (at, reply) in ranked)
        ranks = tuple(1 + rank for rank, _ in ranked)
        records.append(Ranking(turns, answers, "oasst", label, ranks))
    return records or oasst_conversations(row, repairs)


def oasst_conversations(row: Row, repairs: list[str]) -> list[Record]:
    """A conversation for each last answer of a tree, of the best answers only.

    Where answers have no ranks, of all.
    """
    label = label_of(row, "message_tree_id")
    paths = _paths(_root(row), (), repairs)
    records: list[Record] = [Conversation(turns, "oasst", label) for turns in paths]
    if not records:
        raise RowError("prompt.replies", "no answer", "at least one", "no answered turn")
    return records


def _root(row: Row) -> Reply:
    root = object_of(row.get("prompt"), "prompt")
    if _is_deleted(root):
        raise RowError("prompt", "a deleted message", "one that was kept", "deleted message")
    return "prompt", root


def _is_deleted(message: Row) -> bool:
    return message.get("deleted") is True or message.get("review_result") is False


def _turn(message: Reply, turns: Turns) -> Turn:
    where, node = message
    role = role_of(node.get("role"), f"{where}.role")
    if role != ("assistant" if len(turns) % 2 else "user"):
        raise RowError(f"{where}.role", role, "the other speaker", "roles do not alternate")
    return Turn(role, text_of(node.get("text"), f"{where}.text"))


def _replies(message: Reply, repairs: list[str]) -> list[Reply]:
    where, node = message
    replies = node.get("replies")
    kept: list[Reply] = []
    for at, reply in objects_of([] if replies is None else replies, f"{where}.replies"):
        if _is_deleted(reply):
            repairs.append("left out deleted message")
        else:
            kept.append((at, reply))
    return kept


def _ranked(replies: Sequence[Reply]) -> Ranked:
    """The answers with a rank, best first."""
    ranked = [
        (number_of(reply["rank"], f"{where}.rank"), (where, reply))
        for where, reply in replies
        if reply.get("rank") is not None
    ]
    return sorted(ranked, key=lambda pair: pair[0])  # stable: tied answers stay in their order


def _asked(
    message: Reply, before: Turns, repairs: list[str]
) -> Iterator[tuple[Turns, list[Reply]]]:
    """(turns that end with the user's, its answers) of every user's message from here on."""
    turns = (*before, _turn(message, before))
    replies = _replies(message, repairs)
    if turns[-1].role == "user":
        yield turns, replies
    for reply in replies:
        yield from _asked(reply, turns, repairs)


def _paths(message: Reply, before: Turns, repairs: list[str]) -> Iterator[Turns]:
    """The conversations that go on from a message, to their last answers."""
    turns = (*before, _turn(message, before))
    replies = _replies(message, repairs)
    ends = turns[-1].role == "assistant"
    if not ends and (ranked := _ranked(replies)):
        best = ranked[0][0]
        replies = [reply for rank, reply in ranked if rank == best]
    for reply in replies:
        for path in _paths(reply, turns, repairs):
            ends = False
            yield path
    if ends:
        yield turns
