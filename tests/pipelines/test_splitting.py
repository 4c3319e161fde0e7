"""Small sets: what is held out is not trained on, and is there where there are two questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rayward.configs.schema import Config
from rayward.data.records import Conversation, Labelled, Prompt, Ranking, Turn
from rayward.pipelines.rows.splitting import FILES, divide


def chat(question: str, answer: str = "Yes.") -> Conversation:
    return Conversation((Turn("user", question), Turn("assistant", answer)))


def ranking(question: str) -> Ranking:
    return Ranking((Turn("user", question),), ("good", "bad"))


def label(question: str, good: bool = True) -> Labelled:
    return Labelled((Turn("user", question),), "An answer.", good)


def divided(
    config: Config, chats: list[Conversation], rankings: list[Ranking | Labelled]
) -> dict[str, list]:
    records: dict[str, list] = {"conversations": chats, "preferences": rankings}
    records |= {"prompts": [Prompt((Turn("user", "Why?"),))], "evaluation_prompts": []}
    return divide(records, config, {name: Counter() for name in FILES})


def test_copies_of_what_is_held_out_are_not_trained_on(tiny_config: Callable[..., Config]) -> None:
    # Fractions so small that no row is held out by its hash.
    config = tiny_config(data={"sft_heldout_fraction": 1e-6, "heldout_fraction": 1e-6})
    for chats, heldout in (
        ([chat("a"), chat("b"), chat("c")], {"c"}),
        ([chat("a"), chat("b"), chat("b", "No.")], {"a"}),  # the question of the fewest rows
        ([chat("a"), chat("a"), chat("b"), chat(" b\n", "No.")], {"b"}),
        ([chat("a"), chat("a", "No.")], set()),
        ([chat("a")], set()),
        ([], set()),
    ):
        split = divided(config, chats, [ranking(chat.turns[0].content) for chat in chats])
        for trained, measured in (("conversations", "sft_heldout"), ("rankings", "heldout")):
            asked = {name: {row.turns[0].content.strip() for row in split[name]} for name in FILES}
            assert asked[measured] == heldout and not asked[trained] & heldout
            assert len(split[trained]) + len(split[measured]) == len(chats)


def test_labelled_answers_are_held_out_with_the_rankings_of_their_prompt(
    tiny_config: Callable[..., Config],
) -> None:
    none, half = (tiny_config(data={"heldout_fraction": part}) for part in (1e-6, 0.5))
    for config, rankings, labels, heldout in (
        # Of the rankings c is measured on, of the labels too.
        (none, "abc", "abcd", "c"),
        # No ranking can be held out; a is trained on as one, so the last other question is.
        (none, "a", "abcc", "b"),
        (none, "", "aab", "b"),
        (none, "a", "a", ""),
        (none, "", "", ""),
        (half, "abcdefgh", "aabbccddeeffgghh", None),
    ):
        rows = [*map(ranking, rankings), *(label(q, i % 2 > 0) for i, q in enumerate(labels))]
        split = divided(config, [], rows)
        asked = {name: {row.turns[0].content for row in split[name]} for name in FILES}
        trained = asked["rankings"] | asked["judge"] | asked["labelled"]
        measured = asked["heldout"] | asked["labelled_heldout"]
        assert not trained & measured and trained | measured == {*rankings, *labels}
        assert heldout is None or measured == {*heldout}
        assert len(split["labelled"]) + len(split["labelled_heldout"]) == len(labels)
    assert trained and measured, "the last one has both"
