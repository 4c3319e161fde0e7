"""Records: what is wrong with one is named, and JSON gives back what it was given."""

from __future__ import annotations

import json
import random

import pytest

from rayward.data.record_json import from_json, to_json
from rayward.data.records import Conversation, Preference, Prompt, Ranking, RowError, Turn, validate

USER, ANSWER = Turn("user", "q"), Turn("assistant", "a")


@pytest.mark.parametrize("record, reason", [
    (Conversation((ANSWER, USER, ANSWER)), "assistant first"),
    (Conversation((USER, USER, ANSWER)), "roles do not alternate"),
    (Conversation((USER, ANSWER, Turn("system", "s"), ANSWER)), "roles do not alternate"),
    (Conversation((USER,)), "does not end with the assistant"),
    (Conversation(()), "no turns"),
    (Conversation((Turn("system", "s"),)), "no turns"),
    (Conversation((USER, Turn("assistant", " "))), "empty text"),
    (Conversation((USER, Turn("robot", "a"))), "unknown role"),
    (Conversation((USER, Turn("assistant", "a", -1.0))), "negative weight"),
    (Conversation((USER, Turn("assistant", "a", float("nan")))), "number not finite"),
    (Prompt((USER, ANSWER)), "does not end with the user"),
    (Prompt((USER,), follow_ups=("",)), "empty text"),
    (Preference((USER,), "a", ""), "empty text"),
    (Preference((USER, ANSWER), "a", "b"), "does not end with the user"),
    (Preference((USER,), "a", "b", float("inf")), "number not finite"),
    (Ranking((USER,), ("a",)), "too few answers"),
    (Ranking((USER,), ("a", "")), "empty text"),
    (Ranking((USER,), ("a", "b"), ranks=(1.0,)), "ranks do not match the answers"),
    (Ranking((USER,), ("a", "b"), ranks=(2.0, 1.0)), "ranks out of order"),
])  # fmt: skip
def test_validate_names_what_is_wrong(record, reason):
    with pytest.raises(RowError) as caught:
        validate(record)
    assert caught.value.reason == reason


def test_json_round_trip_of_random_records():
    rng = random.Random(1)

    def text() -> str:
        return rng.choice(["a", "日本", " x ", "\n\n", "é"]) + "."

    for _ in range(200):
        turns = (Turn("system", text()),) * rng.randrange(2)
        for _ in range(rng.randrange(1, 4)):
            turns += (Turn("user", text()), Turn("assistant", text(), rng.choice([None, 0.0, 0.5])))
        prompt, source, name = turns[:-1], rng.choice(["", "s"]), rng.choice(["", "7"])
        ranks = rng.choice([None, (1.0, 1.0, 2.5)])
        for record in (
            Conversation(turns, source, name, rng.choice([None, "gold"])),
            Prompt(prompt, source, name, rng.choice([(), (text(),)])),
            Ranking(prompt, (text(), text(), text()), source, name, ranks),
            Preference(prompt, text(), text(), rng.choice([None, 0.25]), source, name),
        ):
            validate(record)
            assert from_json(json.loads(json.dumps(to_json(record)))) == record
