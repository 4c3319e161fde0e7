"""Records to token rows: prompts are prefixes of conversations, what fits is kept whole, all else
is counted.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.sections.training import Sft
from rayward.data.record_json import to_json
from rayward.data.records import Conversation, Labelled, Prompt, Ranking, RowError, Turn
from rayward.data.templates.template import TEMPLATES
from rayward.data.templates.tokenizer import train_tokenizer
from rayward.data.toy import toyworld
from rayward.pipelines.rows.conversations import fit_conversations, sft_rows
from rayward.pipelines.rows.labelled import fit_labelled
from rayward.pipelines.rows.left_out import IN_PIECES, LeftOut
from rayward.pipelines.rows.prompts import fit_prompts, prompt_key
from rayward.pipelines.rows.ranked import best_and_worst, ranked_rows
from rayward.pipelines.rows.rankings import fit_rankings
from rayward.pipelines.rows.records import load_records
from rayward.pipelines.rows.renderer import Renderer, scored_ids
from rayward.pipelines.run import earlier
from rayward.pipelines.run.files import write_jsonl
from rayward.pipelines.run.folder import Run
from rayward.pipelines.stages import reward
from tests.data.published import CHANNELS, STRICT, THINKING, TOOLED

CHATS = toyworld.demonstrations(60, 1) + [
    Conversation(
        (
            Turn("system", "Be brief."),
            Turn("user", "Hi <|end_of_turn|></s>"),
            Turn("assistant", "日本語 😀 \n"),
        )
    ),
    Conversation(
        (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    ),
]
RANKINGS, _ = toyworld.rankings(40, 5, 0.1, 1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    special = (
        "<|end_of_turn|>",
        *(token for entry in TEMPLATES.values() for token in entry.special_tokens),
    )
    return train_tokenizer(
        [turn.content for chat in CHATS for turn in chat.turns], 330, special, 4096
    )


@pytest.fixture(
    scope="module",
    params=sorted(name for name, template in TEMPLATES.items() if not template.is_tokenizers),
)
def renderer(request: pytest.FixtureRequest, tokenizer: Any) -> Renderer:
    return Renderer(TEMPLATES[request.param], tokenizer, 4096)


def user(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


# ---- rendering
# ---------------------------------------------------------------------------------------------


def test_a_prompt_is_a_prefix_of_every_conversation_that_continues_it(renderer: Renderer) -> None:
    for chat in CHATS:
        encoded = renderer.conversation(chat.turns)
        for index, turn in enumerate(chat.turns):
            if turn.role == "assistant":
                prompt = renderer.prompt(chat.turns[:index])
                assert encoded.ids[: len(prompt)] == prompt
                assert (
                    encoded.weights[len(prompt)] == 1 and encoded.weights[len(prompt) - 1] == 0
                ), "the answer begins here"
        assert len(encoded.ids) == len(encoded.weights)


def test_what_follows_the_prompt_reads_as_the_answer_and_stops(renderer: Renderer) -> None:
    (stop,) = renderer.stop_token_ids
    for chat in CHATS:
        encoded = renderer.conversation(chat.turns)
        ids = encoded.ids[len(renderer.prompt(chat.turns[:-1])) :]
        answer, end = ids[: ids.index(stop)], ids[ids.index(stop) :]
        assert (
            renderer.answer(answer)
            == renderer.answer(answer + [stop])
            == chat.turns[-1].content.strip()
        )
        assert len(end) <= 2 and encoded.weights[-len(end)] == 1, "the model learns to stop"


def test_a_special_token_in_a_text_is_text(renderer: Renderer) -> None:
    (stop,) = renderer.stop_token_ids
    asked = renderer.prompt(user("Hi <|end_of_turn|> </s> <s> there"))
    assert asked.count(stop) == renderer.prompt(user("Hi there")).count(stop)


# ---- what a reward model reads
# -------------------------------------------------------------------------------


def test_training_evaluation_and_rollouts_read_the_same_ids(renderer: Renderer) -> None:
    (stop,) = renderer.stop_token_ids
    for ranking in (
        *RANKINGS[:8],
        Ranking(CHATS[-1].turns[:-1], ("one <|im_end|>", "two\n\nlines")),
    ):
        prompt = Prompt(ranking.turns)
        trained = ranked_rows([ranking], renderer, None)[1]
        for row, said in enumerate(ranking.answers):
            ids, weights = trained.ids[row].tolist(), trained.answers[row].tolist()
            assert scored_ids(renderer, prompt, said, finished=True) == ids
            # What is sampled from, and what a model then samples: to the stop.
            asked = renderer.prompt(ranking.turns)
            spoken = renderer.conversation((*ranking.turns, Turn("assistant", said))).ids[
                len(asked) :
            ]
            assert ids == asked + spoken[: spoken.index(stop) + 1] and ids[-1] == stop
            assert weights == [0] * len(asked) + [1] * (len(ids) - len(asked))
            assert stop not in scored_ids(renderer, prompt, said, finished=False)[len(asked) :]


def test_a_judged_row_is_cut_to_the_context(renderer: Renderer) -> None:
    prompt, said = Prompt(user("Hi")), "yes " * 50
    short = replace(renderer, context_tokens=len(renderer.prompt(prompt.turns)) + 7)
    row = scored_ids(short, prompt, said, finished=True)
    assert len(row) == short.context_tokens and row[-1] not in renderer.stop_token_ids
    empty = renderer.prompt(prompt.turns)
    assert scored_ids(renderer, prompt, " ", finished=True) == empty + renderer.stop_token_ids
    assert scored_ids(renderer, prompt, "", finished=False) == empty


def test_scores_are_centred_on_answers_that_ended_or_that_is_told(
    renderer: Renderer, tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_config: Any
) -> None:
    (tmp_path / "prepare").mkdir()
    turns = [
        *(chat.turns for chat in CHATS[:5]),
        (*user("Hi"), Turn("assistant", "weightless", 0.0)),
    ]
    write_jsonl(
        tmp_path / "prepare" / "sft_heldout.jsonl", [to_json(Conversation(said)) for said in turns]
    )
    run = Run(tmp_path, tiny_config())
    rows = reward._sft_answers(run, renderer)
    assert len(rows) == 5 and all(
        rows[row].tolist()[-1:] == renderer.stop_token_ids for row in range(5)
    )
    assert capsys.readouterr().out == ""
    assert len(reward._sft_answers(run, replace(renderer, context_tokens=8))) == 0
    said = capsys.readouterr().out
    assert (
        "the scores are NOT centred" in said
        and "6 SFT answers are held out: 5 end" in said
        and "(8)" in said
    )


def test_a_reward_model_of_an_earlier_version_is_made_again_where_its_rows_ended_elsewhere(
    renderer: Renderer,
) -> None:
    told = earlier.ends_differ(renderer.template, renderer.tokenizer)
    assert bool(told) == (renderer.template.name == "chatml"), (
        "of ours only chatml writes after the end token"
    )


# ---- fitting: nothing is lost without a count
# ----------------------------------------------------------------


@pytest.mark.parametrize("context", [1, 20, 40, 60, 80, 400])
def test_conversations_are_kept_cut_or_counted(renderer: Renderer, context: int) -> None:
    renderer = replace(renderer, context_tokens=context)
    dropped: Counter[str] = Counter()
    kept, rows = fit_conversations(CHATS, renderer, dropped)
    assert len(kept) == len(rows) and len(kept) + dropped[
        "no answer token within the context"
    ] == len(CHATS)
    whole = [renderer.conversation(record.turns) for record in kept]
    assert dropped["kept, cut to the context"] == sum(len(row.ids) > context for row in whole)
    for row, full in zip(rows, whole, strict=True):
        assert (
            row.ids == full.ids[:context]
            and row.weights == full.weights[:context]
            and any(row.weights)
        )
    lost = [chat for chat in CHATS if chat not in kept]
    assert not any(any(renderer.conversation(chat.turns).weights[:context]) for chat in lost)


@pytest.mark.parametrize("context", [1, 40, 50, 60, 400])
def test_rankings_keep_the_answers_that_fit_whole_in_their_order(
    renderer: Renderer, context: int
) -> None:
    renderer = replace(renderer, context_tokens=context)
    rng = random.Random(0)
    ranked = [
        replace(r, ranks=tuple(sorted(rng.choice((1.0, 2.0)) for _ in r.answers)))
        for r in RANKINGS[20:]
    ]
    given = RANKINGS[:20] + ranked
    dropped: Counter[str] = Counter()
    kept, rows = fit_rankings(given, renderer, dropped)
    lost = sum(count for rule, count in dropped.items() if not rule.startswith("kept"))
    assert len(kept) == len(rows) and len(kept) + lost == len(given)
    by_id = {ranking.id: ranking for ranking in given}
    shortened = 0
    for ranking, encoded in zip(kept, rows, strict=True):
        before = by_id[ranking.id]
        fits = [
            len(renderer.scored((*before.turns, Turn("assistant", a))).ids) <= context
            for a in before.answers
        ]
        assert ranking.answers == tuple(
            a for a, fit in zip(before.answers, fits, strict=True) if fit
        )
        if before.ranks is not None:
            assert ranking.ranks == tuple(
                r for r, fit in zip(before.ranks, fits, strict=True) if fit
            )
            assert len(set(ranking.ranks)) > 1, "all tied teaches nothing"
        whole = [renderer.scored((*ranking.turns, Turn("assistant", a))) for a in ranking.answers]
        assert [row.ids for row in encoded] == [row.ids for row in whole]
        first = len(renderer.prompt(ranking.turns))
        assert all(not any(row.weights[:first]) and row.weights[first] == 1 for row in encoded)
        assert len(encoded) >= 2 and max(len(row.ids) for row in encoded) <= context
        shortened += not all(fits)
    assert dropped["kept, without answers longer than the context"] >= shortened


def test_a_ranking_that_is_all_ties_once_cut_is_dropped(renderer: Renderer) -> None:
    ranking = Ranking(user("q"), ("a", "b", "c" * 500), ranks=(1.0, 1.0, 2.0))
    dropped: Counter[str] = Counter()
    assert (
        fit_rankings([ranking], replace(renderer, context_tokens=4096), dropped)[0] == [ranking]
        and not dropped
    )
    room = len(renderer.conversation((*user("q"), Turn("assistant", "a"))).ids) + 5
    assert fit_rankings([ranking], replace(renderer, context_tokens=room), dropped)[0] == []
    assert dropped["all answers that fit are tied"] == 1


def test_a_prompt_that_just_fits_is_kept_and_one_token_more_is_not(renderer: Renderer) -> None:
    prompt = Prompt(user("How are you?"))
    tokens = len(renderer.prompt(prompt.turns))
    for new_tokens in (1, 16):
        dropped: Counter[str] = Counter()
        kept, rows = fit_prompts(
            [prompt], replace(renderer, context_tokens=tokens + new_tokens), new_tokens, dropped
        )
        assert (
            kept == [prompt] and rows[0].tolist() == renderer.prompt(prompt.turns) and not dropped
        )
        kept, rows = fit_prompts(
            [prompt], replace(renderer, context_tokens=tokens + new_tokens - 1), new_tokens, dropped
        )
        assert (
            kept == [] and len(rows) == 0 and dropped == {"prompt leaves no room for an answer": 1}
        )


@pytest.mark.parametrize("context", [1, 50, 60, 400])
def test_prompts_are_distinct_and_all_are_counted(renderer: Renderer, context: int) -> None:
    given = [Prompt(chat.turns[:-1], id=str(i)) for i, chat in enumerate(CHATS)] * 2
    given += [Prompt(user(" Hi there")), Prompt(user("Hi there\n"))]
    dropped: Counter[str] = Counter()
    kept, rows = fit_prompts(given, replace(renderer, context_tokens=context), 16, dropped)
    assert len(kept) == len(rows) and len(kept) + dropped.total() == len(given)
    assert len({prompt_key(prompt.turns) for prompt in kept}) == len(kept)
    for prompt, row in zip(kept, rows, strict=True):
        assert row.tolist() == renderer.prompt(prompt.turns) and len(row) + 16 <= context
    if context == 400:
        assert {prompt_key(prompt.turns) for prompt in kept} == {
            prompt_key(prompt.turns) for prompt in given
        }


# ---- the rest
# ----------------------------------------------------------------------------------------------


def test_what_makes_two_prompts_the_same() -> None:
    same = [user("Hi there"), user("  Hi there\n")]
    other = [
        user("hi there"),
        user("Hi  there"),
        (Turn("system", "Hi there"),),
        (Turn("user", "Hi"), Turn("assistant", "there")),
        (Turn("user", "Hi"), Turn("user", "there")),
        (Turn("system", ""), Turn("user", "Hi there")),
    ]
    assert len({prompt_key(turns) for turns in same}) == 1
    assert len({prompt_key(turns) for turns in same + other}) == 1 + len(other)


def test_sft_rows_carry_ids_and_weights(renderer: Renderer) -> None:
    chats = [*CHATS, Conversation((Turn("user", "a"), Turn("assistant", "b", 0.25)))]
    _, encoded = fit_conversations(chats, renderer, Counter())
    ids, weights = sft_rows(encoded)
    assert (
        len(ids) == len(weights) == len(chats) and ids.lengths.tolist() == weights.lengths.tolist()
    )
    for row, expected in enumerate(encoded):
        assert ids[row].tolist() == expected.ids and weights[row].tolist() == expected.weights
    assert 0.25 in weights[len(chats) - 1], "a turn's own weight survives"


def test_records_come_back_from_a_file(tmp_path: Path) -> None:
    records = [
        *CHATS,
        *RANKINGS[:5],
        *toyworld.prompts(5, 0, "train"),
        replace(RANKINGS[0], ranks=(1, 1, 2, 3, 4)),
    ]
    write_jsonl(tmp_path / "records.jsonl", [to_json(record) for record in records])
    assert load_records(tmp_path / "records.jsonl") == records


# ---- segments
# ------------------------------------------------------------------------------------------------


def dialogue(pairs: int, words: int, id: str = "d") -> Conversation:
    turns: list[Turn] = []
    for number in range(pairs):
        turns.append(Turn("user", f"question {number} " + "so " * words))
        turns.append(Turn("assistant", f"answer {number} " + "yes " * words))
    return Conversation(tuple(turns), "test", id)


@pytest.mark.parametrize("context", [120, 200, 400])
def test_segments_lose_nothing_and_fit(renderer: Renderer, context: int) -> None:
    renderer = replace(renderer, context_tokens=context + len(renderer.prompt(user("x"))))
    chats = [dialogue(n, 1 + n % 3, f"d{n}") for n in range(1, 12)]
    dropped: Counter[str] = Counter()
    kept, rows = fit_conversations(chats, renderer, dropped, Sft(long_conversations="segment"))
    assert len(kept) == len(chats) + dropped["kept, further segments"] and len(kept) > len(chats)
    for chat in chats:
        parts = [record for record in kept if record.id.split("_")[0] == chat.id]
        assert tuple(turn for part in parts for turn in part.turns) == chat.turns
        if len(parts) > 1:
            assert [part.id for part in parts] == [
                f"{chat.id}_{sum(len(before.turns) for before in parts[:index])}"
                for index in range(len(parts))
            ]
    assert (
        all(len(row.ids) <= renderer.context_tokens for row in rows)
        and not dropped["kept, cut to the context"]
    )
    again = fit_conversations(kept, renderer, Counter(), Sft(long_conversations="segment"))
    assert again == (kept, rows), "segments are not divided again"


def test_a_pair_longer_than_the_context_is_kept_and_cut_and_one_without_answer_is_counted(
    renderer: Renderer,
) -> None:
    small = dialogue(1, 2).turns
    long_answer = (Turn("user", "why"), Turn("assistant", "word " * 300))
    long_question = (Turn("user", "word " * 600), Turn("assistant", "ok"))
    renderer = replace(renderer, context_tokens=160)
    settings, dropped = Sft(long_conversations="segment"), Counter[str]()
    given = ((*small, *long_answer, *small), (*small, *long_question), long_question)
    chats = [Conversation(turns) for turns in given]
    kept, rows = fit_conversations(chats, renderer, dropped, settings)
    assert [record.turns for record in kept] == [small, long_answer, small, small]
    assert [len(row.ids) == 160 for row in rows] == [False, True, False, False]
    assert dropped == {
        "kept, divided into segments": 2,
        "kept, further segments": 2,
        "kept, cut to the context": 1,
        "kept, without segments that have no answer token within the context": 1,
        "no answer token within the context": 1,
    }
    assert fit_conversations(kept, renderer, Counter(), settings) == (kept, rows)


def test_no_system_message_is_added_and_a_given_one_stands_before_every_segment(
    tokenizer: Any,
) -> None:
    renderer = Renderer(TEMPLATES["ultralm"], tokenizer, 150)
    for system in ((), (Turn("system", "Be brief."),)):
        chat = replace(dialogue(8, 2), turns=(*system, *dialogue(8, 2).turns))
        kept, rows = fit_conversations(
            [chat], renderer, Counter(), Sft(long_conversations="segment")
        )
        start = "<s>User: Be brief.</s>\nUser: question" if system else "<s>User: question"
        assert len(kept) > 2 and all(tokenizer.decode(row.ids).startswith(start) for row in rows)


def test_a_conversation_whose_weights_are_all_zero_is_counted(renderer: Renderer) -> None:
    dropped: Counter[str] = Counter()
    silent = Conversation((Turn("user", "q"), Turn("assistant", "a", 0.0)))
    assert fit_conversations([silent, CHATS[0]], renderer, dropped)[0] == [CHATS[0]]
    assert dropped == {"no answer token within the context": 1}


# ---- the tokenizer's own chat template
# ---------------------------------------------------------------------------


@pytest.fixture
def strict() -> Renderer:
    """Gemma's kind: no system role, and it trims."""
    texts = [turn.content for chat in CHATS for turn in chat.turns]
    own = train_tokenizer(texts, 330, ("<|im_end|>", "<|im_start|>"), 4096)
    own.chat_template = STRICT
    return Renderer(TEMPLATES["tokenizer"], own, 4096)


def test_rows_that_a_template_cannot_render_are_set_aside_and_listed(strict: Renderer) -> None:
    system = (Turn("system", "Be brief."), Turn("user", "Hi there"))
    good = [Conversation((*user(f"Why {i}?"), Turn("assistant", "So."))) for i in range(3)]
    bad = Conversation((*system, Turn("assistant", "Hello!")), "openai", "c7")
    rule, told = (
        "the chat template raises",
        {
            "found": "turns[0] (system): TemplateError: System role not supported",
            "expected": "a turn that the chat template renders",
        },
    )
    for settings in (None, Sft(long_conversations="segment")):
        left = LeftOut()
        kept, rows = fit_conversations([good[0], bad, *good[1:]], strict, left, settings)
        assert kept == good and len(rows) == 3 and left == {rule: 1}
        assert left.rows == [{"where": "openai c7", "reason": rule, **told}]
    left = LeftOut()
    rankings = [Ranking(system, ("a", "b")), Ranking(user("Hi"), ("a", "b"))]
    assert fit_rankings(rankings, strict, left)[0] == rankings[1:]
    assert left.rows == [{"where": "a row 'Hi there'", "reason": rule, **told}]
    left = LeftOut()
    prompts = [Prompt(system, "orca"), Prompt(user("Hi"))]
    assert (
        fit_prompts(prompts, strict, 16, left)[0] == prompts[1:]
        and left.rows[0]["where"] == "orca 'Hi there'"
    )
    counts = Counter[str]()
    assert fit_prompts(prompts, strict, 16, counts)[0] == prompts[1:] and counts == {rule: 1}


def test_rows_in_pieces_are_counted(strict: Renderer) -> None:
    told, marked = (
        Conversation((*user("Hi"), Turn("assistant", "ok"))),
        (*user("Hi"), Turn("assistant", "<|im_end|>")),
    )
    left = LeftOut()
    assert len(fit_conversations([told, Conversation(marked)], strict, left)[0]) == 2 and left == {
        IN_PIECES: 1
    }
    left = LeftOut()
    assert len(fit_rankings([Ranking(user("Hi"), ("a", "<|im_end|>"))], strict, left)[0]) == 1
    assert left == {IN_PIECES: 1}
    left = LeftOut()
    assert (
        len(fit_prompts([Prompt(user("Hi")), Prompt(user("<|im_end|>"))], strict, 16, left)[0]) == 2
    )
    assert left == {IN_PIECES: 1}


def test_a_prompt_is_left_out_whose_answer_could_not_be_trained(strict: Renderer) -> None:
    """Mistral's writes a system text into the last question only, so no conversation with an answer
    has it.
    """
    strict.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ messages[0].content if "
        "loop.last and messages[0].role == 'system' }}{{ m.content }}{% elif m.role == "
        "'assistant' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if "
        "add_generation_prompt %}<|im_start|>{% endif %}"
    )
    prompts = [Prompt((Turn("system", "Be brief."), *user("Hi")), "orca", "p1"), Prompt(user("Ho"))]
    assert len(strict.prompt(prompts[0].turns)) > len(strict.prompt(user("Hi"))), "it is rendered"
    left = LeftOut()
    assert fit_prompts(prompts, strict, 16, left)[0] == prompts[1:]
    assert [row["where"] for row in left.rows] == ["orca p1"] and "system" in left.rows[0]["found"]


def test_an_answer_that_a_template_would_rewrite_is_scored_as_it_was_said(strict: Renderer) -> None:
    strict.tokenizer.chat_template = THINKING
    prompt, said = Prompt(user("Hi")), "Well</think>yes"
    with pytest.raises(RowError):
        strict.scored((*prompt.turns, Turn("assistant", said)))
    for finished in (True, False):
        ids = scored_ids(strict, prompt, said, finished)
        asked = strict.prompt(prompt.turns)
        assert ids[: len(asked)] == asked
        assert strict.tokenizer.decode(ids[len(asked) :]) == said + "<|im_end|>" * finished


@pytest.mark.parametrize("form", [THINKING, CHANNELS])
def test_what_the_template_writes_before_an_answer_is_none_of_it(form: str) -> None:
    special = (
        "<|im_end|>",
        "<|im_start|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    )
    own = train_tokenizer(
        [turn.content for chat in CHATS for turn in chat.turns], 330, special, 4096
    )
    own.chat_template = form
    renderer = Renderer(TEMPLATES["tokenizer"], own, 4096)
    turns = (*user("Hi"), Turn("assistant", "It is 12."))
    said = renderer.conversation(turns).ids[len(renderer.prompt(turns[:1])) :]
    assert own.decode(said) != "It is 12." and renderer.answer(said) == "It is 12."
    assert (
        scored_ids(renderer, Prompt(turns[:1]), renderer.answer(said), True)
        == renderer.scored(turns).ids
    )
    assert renderer.answer(said[3:]) != "It is 12.", "only as a whole"


# ---- labelled answers
# ---------------------------------------------------------------------------


def test_a_labelled_answer_has_its_tools_or_is_set_aside(renderer: Renderer) -> None:
    tools = '[{"type": "function", "function": {"name": "weather"}}]'
    given = Labelled(user("Hi"), "ok", True, "kto", "k1", tools)
    left = LeftOut()
    plain = replace(given, tools=None)
    assert fit_labelled([given, plain], renderer, left)[0] == [plain]
    assert sum(left.values()) == 1 and left.rows[0]["where"] == "kto k1"
    assert "weather" in left.rows[0]["found"], "no tool is lost without a word"


def test_a_labelled_answer_is_learned_behind_its_tools(strict: Renderer) -> None:
    strict.tokenizer.chat_template = TOOLED
    tools = '[{"type": "function", "function": {"name": "weather"}}]'
    given = Labelled(user("Hi"), "ok", True, "kto", "k1", tools)
    kept, rows = fit_labelled([given], Renderer(strict.template, strict.tokenizer, 4096), Counter())
    assert kept == [given] and "weather" in strict.tokenizer.decode(rows[0].ids)


def test_of_a_ranking_the_best_answer_is_good_and_the_worst_bad(renderer: Renderer) -> None:
    ordered = Ranking(user("q"), ("c", "b", "a"), ranks=(2.0, 1.5, 1.0))
    plain = Ranking(user("p"), ("best", "middle", "worst"))
    long = Ranking(user("l"), ("x" * 500, "y", "z"))
    room = len(renderer.conversation((*user("q"), Turn("assistant", "middle"))).ids) + 5
    small = replace(renderer, context_tokens=room)
    rankings = ranked_rows([ordered, plain, long], small, 0)[1]
    labels = best_and_worst(rankings)
    said = [renderer.tokenizer.decode(ids) for ids in labels.ids.take(range(6))]
    for text, (question, answer) in zip(
        said, ("qa", "qc", ("p", "best"), ("p", "worst"), "ly", "lz"), strict=True
    ):
        assert question in text and answer in text
    assert labels.good is not None and labels.good.tolist() == [True, False] * 3
    assert labels.answers.lengths.tolist() == labels.ids.lengths.tolist()
