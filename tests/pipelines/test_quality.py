"""C-RLFT: words and weights of each class in the rows, and what a model makes of contradictory
answers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayward.actors.models.forward import to_device
from rayward.actors.models.heads import TokenPolicy
from rayward.actors.models.load import build_from_scratch
from rayward.algorithms.sequence import weighted_nll
from rayward.configs.decisive import decisive
from rayward.configs.schema import Config
from rayward.configs.sections.model import Scratch
from rayward.configs.sections.training import Quality, Sft
from rayward.data.formats.registry import read
from rayward.data.records import Conversation, Turn
from rayward.data.templates.pieces import text, with_condition
from rayward.data.templates.template import TEMPLATES, find
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.pipelines.rows.conversations import fit_conversations, sft_rows
from rayward.pipelines.rows.quality import check, class_of, weighed
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.run.errors import StageError

TOPICS = ("cats", "rain", "tea", "chess", "boats", "glass")
EXPERT_SAYS, OTHER_SAYS = "yes", "no"


def labels_of(chats: Iterable[Conversation]) -> Counter[str | None]:
    return Counter(chat.quality for chat in chats)


PAIRS = [
    Conversation((Turn("user", f"Good {topic}?"), Turn("assistant", said)), "test", topic, label)
    for topic in TOPICS
    for label, said in (("Model: GPT-4", EXPERT_SAYS), ("Model: Default (GPT-3.5)", OTHER_SAYS))
]
ON = {"conditioning": True, "weighting": True}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    texts = [text(find("openchat_3.5"), pair.turns) for pair in PAIRS] + [
        "GPT3 User: GPT3 Assistant: yes no"
    ]
    return Renderer(find("openchat_3.5"), train_tokenizer(texts, 320, ("<|end_of_turn|>",), 64), 64)


def sft(**quality: Any) -> Sft:
    return Sft(quality=Quality(**quality))


# ---- rows
# --------------------------------------------------------------------------------------------------


def test_rows_carry_the_words_and_the_weight_of_their_class(renderer: Renderer) -> None:
    _, rows = fit_conversations(PAIRS[:2], renderer, Counter(), sft(**ON))
    good, other = (renderer.tokenizer.decode(row.ids) for row in rows)
    assert good == (
        "<s>GPT4 Correct User: Good cats?<|end_of_turn|>GPT4 Correct Assistant: yes<|end_of_turn|>"
    )
    assert other == "<s>GPT3 User: Good cats?<|end_of_turn|>GPT3 Assistant: no<|end_of_turn|>"
    trained = [
        {
            w: renderer.tokenizer.decode(
                [i for i, own in zip(row.ids, row.weights, strict=True) if own == w]
            )
            for w in set(row.weights) - {0.0}
        }
        for row in rows
    ]
    assert trained == [{1.0: " yes<|end_of_turn|>"}, {0.1: " no<|end_of_turn|>"}], (
        "text and end token"
    )


@pytest.mark.parametrize("conditioning", [False, True])
@pytest.mark.parametrize("weighting", [False, True])
def test_each_can_be_switched_off(renderer: Renderer, conditioning: bool, weighting: bool) -> None:
    settings = sft(conditioning=conditioning, weighting=weighting)
    plain, rows = (
        fit_conversations(PAIRS, renderer, Counter(), given)[1] for given in (None, settings)
    )
    for index, (before, after) in enumerate(zip(plain, rows, strict=True)):
        other = bool(index % 2)
        assert (before.ids != after.ids) == (conditioning and other)
        assert set(after.weights) == {0.0, 0.1 if weighting and other else 1.0}


def test_off_is_the_default_and_prompts_are_the_experts(
    renderer: Renderer, tiny_config: Callable[..., Config]
) -> None:
    plain, off = (
        fit_conversations(PAIRS, renderer, Counter(), given)[1]
        for given in (None, tiny_config().sft)
    )
    assert plain == off
    asked = renderer.prompt(PAIRS[1].turns[:1])
    _, (expert, _) = fit_conversations(PAIRS[:2], renderer, Counter(), sft(**ON))
    assert expert.ids[: len(asked)] == asked


def test_what_turns_say_of_training_stays_and_weights_of_their_own_do_too() -> None:
    quality = Quality(weighting=True)
    turns = (
        Turn("user", "q", 1.0),
        Turn("assistant", "a", 0.0),
        Turn("user", "r"),
        Turn("assistant", "b"),
    )
    assert [turn.weight for turn in weighed(quality, Conversation(turns))] == [0.1, 0.0, None, 0.1]
    assert weighed(quality, Conversation(turns, quality="gpt4")) == turns
    own = (Turn("user", "q", 0.0), Turn("assistant", "a", 0.1))
    assert weighed(quality, Conversation(own, quality="GPT3")) == own, (
        "OpenChat's files hold the weights of classes"
    )


def test_rows_of_openchat_are_of_their_classes(tmp_path: Path) -> None:
    rows = [
        {
            "condition": condition,
            "system": "",
            "items": [
                {"role": "user", "content": "q", "weight": 0.0},
                {"role": "assistant", "content": "a", "weight": weight},
            ],
        }
        for condition, weight in (("GPT4", 1.0), ("GPT3", 0.1))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    expert, other = read(tmp_path / "rows.jsonl", "crlft")
    quality = Quality(conditioning=True, weighting=True)
    assert [class_of(quality, row) for row in (expert, other)] == ["expert", "sub_optimal"]
    assert [weighed(quality, row)[1].weight for row in (expert, other)] == [1.0, 0.1]


# ---- settings
# ----------------------------------------------------------------------------------------------


def test_more_classes_than_two(renderer: Renderer) -> None:
    quality = Quality(
        conditioning=True,
        weighting=True,
        classes={"human": "human"},
        conditions={"human": "Human"},
        weights={"human": 0.5},
    )
    labels = ("gpt4", "human", "x", None)
    found = [Conversation(PAIRS[0].turns, quality=label) for label in labels]
    assert [class_of(quality, one) for one in found] == [
        "expert",
        "human",
        "sub_optimal",
        "sub_optimal",
    ]
    counts = check(quality, renderer.template, labels_of(found))
    assert {name: sum(of.values()) for name, of in counts.items()} == {
        "expert": 1,
        "human": 1,
        "sub_optimal": 2,
    }
    _, rows = fit_conversations(found, renderer, Counter(), Sft(quality=quality))
    assert [max(row.weights) for row in rows] == [1.0, 0.5, 0.1, 0.1]


@pytest.mark.parametrize(
    "given, told",
    [
        (
            {"classes": {"bard": "bard"}},
            "conditions has nothing for the class 'bard'; the classes are bard, expert, sub",
        ),
        ({"weights": {"exprt": 1}}, "weights names an unknown class 'exprt'"),
        ({"conditions": {"expert": "GPT4"}}, "names the expert, whose words are the template's"),
        (
            {"classes": dict.fromkeys(Quality().classes, "sub_optimal")},
            "no label of the class expert",
        ),
        ({"weights": {"sub_optimal": 0}}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Quality(**given)


def test_data_and_templates_for_which_it_has_no_meaning_are_refused(renderer: Renderer) -> None:
    with pytest.raises(StageError, match="no conversation is of the class expert; list the labels"):
        check(Quality(weighting=True), renderer.template, labels_of(PAIRS[1::2]))
    with pytest.raises(
        StageError, match="conditioning: chat template vicuna_v1.1 cannot say 'GPT3'"
    ):
        check(Quality(conditioning=True), TEMPLATES["vicuna_v1.1"], labels_of(PAIRS))
    with pytest.raises(StageError, match="has the words 'GPT3' of the expert"):
        check(
            Quality(conditioning=True), with_condition(renderer.template, "GPT3"), labels_of(PAIRS)
        )


def test_what_decides_the_rows_is_in_the_plan(tiny_config: Callable[..., Config]) -> None:
    before = tiny_config()
    for change in ({"quality": {"weighting": True}}, {"long_conversations": "segment"}):
        after = tiny_config(sft=change)
        for stage in ("prepare", "sft"):
            assert decisive(before, stage) != decisive(after, stage)


# ---- a model
# -----------------------------------------------------------------------------------------------


def trained(renderer: Renderer, settings: Sft) -> TokenPolicy:
    """A small model of the contradiction."""
    _, encoded = fit_conversations(PAIRS, renderer, Counter(), settings)
    ids, weights = sft_rows(encoded)
    weights_BT, cpu = weights.padded(), torch.device("cpu")
    shape = Scratch(hidden_size=32, intermediate_size=64, layers=1, heads=1, vocab_size=320)
    policy = TokenPolicy(build_from_scratch(shape, renderer.tokenizer, 64, seed=3))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=6e-3, weight_decay=0.0)
    inputs = to_device(ids, weights_BT > 0, cpu)
    weights_N = torch.from_numpy(weights_BT[:, 1:][weights_BT[:, 1:] > 0])
    for _ in range(120):
        optimizer.zero_grad()
        (weighted_nll(policy(*inputs)[0], weights_N) / weights_N.sum()).backward()
        optimizer.step()
    return policy


def expert_share(policy: TokenPolicy, renderer: Renderer, asked_as: str | None = None) -> float:
    """The mean probability of the expert's answer, where it and the other's part ways."""
    template = with_condition(renderer.template, asked_as) if asked_as else renderer.template
    asker = Renderer(template, renderer.tokenizer, 64)
    shares = []
    for pair in PAIRS[::2]:
        answers = [(pair.turns[0], Turn("assistant", said)) for said in (EXPERT_SAYS, OTHER_SAYS)]
        yes, no = (asker.conversation(turns).ids for turns in answers)
        at = next(i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b)
        with torch.no_grad():
            chances = policy.lm(torch.tensor([yes[:at]])).logits[0, -1].softmax(-1)
        assert chances[yes[at]] + chances[no[at]] > 0.98, (
            "it has learnt the two answers and nothing else"
        )
        shares.append(float(chances[yes[at]]))
    return float(np.mean(shares))


def test_each_class_is_answered_as_itself_under_its_own_words(renderer: Renderer) -> None:
    for settings in (sft(**ON), sft(conditioning=True)):
        policy = trained(renderer, settings)
        assert expert_share(policy, renderer) > 0.95
        assert expert_share(policy, renderer, "GPT3") < 0.05


def test_without_words_the_weights_decide_and_without_both_nothing_does(renderer: Renderer) -> None:
    """At the optimum of the weighted loss, p(expert's answer) = 1 / (1 + 0.1)."""
    assert expert_share(trained(renderer, sft(weighting=True)), renderer) == pytest.approx(
        1 / 1.1, abs=0.02
    )
    assert expert_share(trained(renderer, sft()), renderer) == pytest.approx(0.5, abs=0.05)
