"""A tokenizer's own chat template: what is trained, its ids, and the refusal of what cannot be
proved.
"""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from tokenizers import AddedToken

from rayward.data.records import RowError, Turn
from rayward.data.templates.behaviour import behaviour, unlike_own
from rayward.data.templates.jinja import jinja
from rayward.data.templates.pieces import pieces
from rayward.data.templates.published.program import DATE
from rayward.data.templates.template import (
    TEMPLATES,
    encode,
    encode_all,
    end_token,
    find,
    stop_token_ids,
)
from rayward.data.templates.tokenizer import train_tokenizer
from tests.data import kinds
from tests.data.own_rows import check_row, messages, trained
from tests.data.published import (
    CHATML,
    ENDLESS,
    ENDS,
    HEADERS,
    PREFILLED,
    PUBLISHED,
    STRICT,
    THINKING,
)

OWN = find("tokenizer")
SPECIAL = (
    "<|im_end|>",
    "<|im_start|>",
    "</s>",
    "<|end_of_turn|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
)
CORPUS = [
    "user assistant system Hello you there",
    "What is 12 + 345?",
    "It is 357.",
    "[INST] x [/INST]",
]
CHAT = (
    Turn("user", "Hello there"),
    Turn("assistant", "Hi <|im_end|> you"),
    Turn("user", "</s> 12?"),
    Turn("assistant", "345."),
)
TRIMMING = (
    "{{ bos_token }}{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{%- if m.role "
    "== 'assistant' %}{% generation %}{{ m.content | trim + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ m.content | trim + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}{%- if "
    "add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def with_template(form: str | None) -> Any:
    tokenizer = train_tokenizer(CORPUS, 320, SPECIAL, 512)
    tokenizer.chat_template = form
    return tokenizer


@pytest.mark.parametrize(
    "name", ["chatml", "openchat_3.5", "vicuna_v1.1", "openchat_3.6", "openchat_v3.1"]
)
def test_our_templates_written_as_jinja_come_back_the_same(name: str) -> None:
    tokenizer = with_template(jinja(TEMPLATES[name]))
    for turns, asks in (
        (CHAT, False),
        (CHAT[:3], True),
        ((Turn("system", "Be brief."), *CHAT), False),
    ):
        ours, own = (
            encode(TEMPLATES[name], turns, tokenizer, asks),
            encode(OWN, turns, tokenizer, asks),
        )
        assert tokenizer.decode(own.ids) == tokenizer.decode(ours.ids)
        assert own.ids.count(tokenizer.bos_token_id) == 1
        # There, "\n\n" before an answer is a piece of its own in both, but not in history.
        if name != "openchat_3.6":
            assert (own.ids, own.weights) == (ours.ids, ours.weights)
    assert end_token(OWN, tokenizer) == TEMPLATES[name].end_token
    assert stop_token_ids(OWN, tokenizer) == stop_token_ids(TEMPLATES[name], tokenizer)


def test_ids_and_mask_are_those_of_transformers_where_nobody_writes_special_tokens() -> None:
    tokenizer, rng = with_template(TRIMMING), random.Random(0)
    for _ in range(100):
        known = ["Hello", "12", "日本", "it's"]
        words = [" ".join(rng.choices(known, k=3)) + rng.choice(["", " ", "\n"]) for _ in CHAT]
        turns = tuple(Turn(turn.role, said) for turn, said in zip(CHAT, words, strict=True))
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        applied = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
        encoded = encode(OWN, turns, tokenizer)
        assert encoded.ids == applied["input_ids"]
        assert encoded.weights == [float(trained) for trained in applied["assistant_masks"]]


def test_a_prompt_is_a_prefix_and_nothing_that_is_said_is_special() -> None:
    tokenizer = with_template(TRIMMING)
    whole = encode(OWN, CHAT, tokenizer)
    for end in (1, 3):
        prompt = encode(OWN, CHAT[:end], tokenizer, True)
        assert (
            whole.ids[: len(prompt.ids)] == prompt.ids
            and whole.weights[: len(prompt.ids)] == prompt.weights
        )
        assert whole.weights[len(prompt.ids)] == 1.0
    (stop,) = stop_token_ids(OWN, tokenizer)
    assert (
        whole.ids.count(stop) == len(CHAT)
        and whole.ids.count(tokenizer.convert_tokens_to_ids("</s>")) == 0
    )
    assert "Hi <|im_end|> you<|im_end|>" in tokenizer.decode(whole.ids)


@pytest.mark.parametrize("unknown", ["</s>", "<|im_end|>"])
def test_the_unknown_token_s_own_string_stays_text(unknown: str) -> None:
    """SmolLM2's is <|endoftext|>; where it ends answers too, rows would all count as encoded in
    pieces.
    """
    tokenizer = with_template(TRIMMING)
    tokenizer.unk_token = unknown
    turns = (Turn("user", f"Hello {unknown} there"), Turn("assistant", f"12 {unknown}"))
    row, plain = (
        encode(OWN, turns, tokenizer),
        encode(OWN, (Turn("user", "Hello"), Turn("assistant", "12")), tokenizer),
    )
    number = tokenizer.convert_tokens_to_ids(unknown)
    assert row.ids.count(number) == plain.ids.count(number) == (2 if unknown == "<|im_end|>" else 0)
    assert f"Hello {unknown} there<|im_end|>" in tokenizer.decode(row.ids)
    assert (row.apart, plain.apart) == (True, False)


def test_weights_of_turns_cover_content_and_end_token() -> None:
    tokenizer = with_template(TRIMMING)
    turns = (
        Turn("user", "Hello", 0.5),
        Turn("assistant", "you", 0.1),
        Turn("user", "12?"),
        Turn("assistant", "345"),
    )
    encoded = encode(OWN, turns, tokenizer)
    spans = {
        w: [i for i, own in zip(encoded.ids, encoded.weights, strict=True) if own == w]
        for w in (0.5, 0.1, 1.0)
    }
    assert {w: tokenizer.decode(ids) for w, ids in spans.items()} == {
        0.5: "Hello",
        0.1: "you<|im_end|>",
        1.0: "345<|im_end|>",
    }


@pytest.mark.parametrize(
    "form, told",
    [
        (None, "has no chat template of its own"),
        ("{{ messages[0].content", "the chat template raises: .*TemplateSyntaxError"),
        (
            TRIMMING.replace(
                "m.content | trim + '<|im_end|>' }}{% endgen",
                "m.content | upper + '<|im_end|>' }}{% endgen",
            ),
            "the chat template rewrites what is said: turns.1. .assistant.: found 'HI, "
            "YOU.*expected 'Hi, you.'",
        ),
        (
            TRIMMING.replace(
                "{{ m.content | trim + '<|im_end|>' }}{% endgen", "{{ m.content }}{% endgen"
            ),
            "no special token ends an answer: a model trained so never learns to stop: turns.1. "
            ".assistant.",
        ),
        (
            TRIMMING.replace("'<|im_start|>' + m.role", "m.content + m.role"),
            "the chat template repeats what the user says: turns.0. .user.: found it 2 times",
        ),
        (
            PREFILLED,
            "asks for an answer elsewhere than it writes it: turns.1. .* expected '<think>.n', "
            "with",
        ),
    ],
)
def test_templates_that_cannot_be_trained_from_are_refused(form: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        stop_token_ids(OWN, with_template(form))


@pytest.mark.parametrize("kind", kinds.KINDS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_templates(name: str, kind: str, tokenizers: dict[str, Any]) -> None:
    """Every prompt is a prefix; ids are those of the whole string exactly where it keeps every
    prompt as its prefix and nobody writes special tokens."""
    tokenizer, rng = tokenizers[kind], random.Random(f"{name} {kind}")
    tokenizer.chat_template = PUBLISHED[name]
    assert end_token(OWN, tokenizer) == ENDS[name]
    assert len(stop_token_ids(OWN, tokenizer)) == (2 if name == "channels" else 1)
    apart = 0
    for number in range(30):
        words = kinds.WORDS + kinds.INJECTIONS * (number % 3 == 0)
        turns = kinds.random_turns(rng, words, rng.randrange(1, 4))
        if number % 4 == 0:
            turns = tuple(Turn(turn.role, rng.choice(["\n", " "]) + turn.content) for turn in turns)
        if name == "strict" and turns[0].role == "system":
            with pytest.raises(
                RowError, match="turns.0. .system.: found TemplateError: System role not supported"
            ):
                encode(OWN, turns, tokenizer)
            continue
        apart += check_row(tokenizer, turns)
    assert 0 < apart < 30


@pytest.mark.parametrize("name, first, last", [
    ("chatml", "Hi.<|im_end|>", "345.<|im_end|>"), ("early", "Hi.<|im_end|>", "345.<|im_end|>"),
    ("headers", "Hi.<|eot_id|>", "345.<|eot_id|>"), ("strict", "Hi.<|im_end|>", "345.<|im_end|>"),
    ("inst", " Hi. </s>", " 345. </s>"), ("afterword", "Hi.<|im_end|>", "345.<|im_end|>"),
    ("thinking", "Hi.<|im_end|>", "<think>\n\n</think>\n\n345.<|im_end|>"),
    ("channels", "<|end_header_id|>final<|start_header_id|>Hi.<|im_end|>",
     "<|end_header_id|>final<|start_header_id|>345.<|eot_id|>")])  # fmt: skip
def test_what_is_trained(name: str, first: str, last: str, tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["bytes"]
    tokenizer.chat_template = PUBLISHED[name]
    turns = (
        Turn("user", "Hello"),
        Turn("assistant", "Hi."),
        Turn("user", "12?"),
        Turn("assistant", "345."),
    )
    assert trained(encode(OWN, turns, tokenizer), tokenizer) == [first, last]


def test_an_answer_that_says_itself_what_the_template_writes_stands_alone(
    tokenizers: dict[str, Any],
) -> None:
    tokenizer = tokenizers["bytes"]
    tokenizer.chat_template = THINKING
    answer = "<think>\nIt is 12.\n</think>\n\n12"
    turns = (
        Turn("user", "Hello"),
        Turn("assistant", "Hi."),
        Turn("user", "7+5?"),
        Turn("assistant", answer),
    )
    encoded = encode(OWN, turns, tokenizer)
    assert trained(encoded, tokenizer) == ["Hi.<|im_end|>", answer + "<|im_end|>"]
    assert encoded.ids == tokenizer.apply_chat_template(messages(turns), return_dict=False)


@pytest.mark.parametrize(
    "form, turns, field, reason, found",
    [
        (
            STRICT,
            (Turn("system", "s"), *CHAT),
            "turns[0] (system)",
            "the chat template raises",
            "TemplateError: System",
        ),
        (
            THINKING,
            (CHAT[0], Turn("assistant", "<think>x</think>y"), *CHAT[2:]),
            "turns[1] (assistant)",
            "the chat template rewrites what is said",
            "'y<|im_end|>",
        ),
        (
            THINKING,
            (*CHAT[:3], Turn("assistant", "y</think>z")),
            "turns[3] (assistant)",
            "the chat template writes other text around what is said",
            "y\\n</think>",
        ),
        (
            CHATML.replace("m.content +", "(m.content if not loop.last else 'x') +"),
            CHAT,
            "turns[3] (assistant)",
            "",
            "",
        ),
        (
            PREFILLED.replace(
                "m.content +",
                "('<think>\\n' if loop.last and m.role == 'assistant' else '') + m.content +",
            ),
            CHAT,
            "turns[1] (assistant)",
            "the chat template asks for an answer elsewhere than it writes it",
            "{turn 1}<|im_",
        ),
        (
            CHATML.replace("m.content +", "(m.content if loop.index < 4 else '') +"),
            CHAT,
            "turns[3] (assistant)",
            "the chat template leaves out what the assistant says",
            "it 0 times",
        ),
        (
            ENDLESS,
            CHAT,
            "turns[1] (assistant)",
            "no special token ends an answer: a model trained so never learns to stop",
            "'user: {turn 2}assistant: {turn 3}<",
        ),
    ],
)
def test_rows_that_cannot_be_proved_are_errors_that_name_the_turn(
    form: str, turns: tuple[Turn, ...], field: str, reason: str, found: str
) -> None:
    tokenizer = with_template(form)
    if not reason:  # refused as a whole: it shows no answer
        with pytest.raises(ValueError, match="leaves out what the assistant says"):
            encode(OWN, turns, tokenizer)
        return
    assert stop_token_ids(OWN, tokenizer), "others can be trained"
    for _ in range(2):  # the second comes from the cache
        with pytest.raises(RowError) as raised:
            encode(OWN, turns, tokenizer)
        assert (raised.value.field, raised.value.reason) == (field, reason)
        assert found in raised.value.found


def test_many_rows_at_once_are_what_they_are_alone(tokenizers: dict[str, Any]) -> None:
    """In templates of their own each, with the errors of some in their place."""
    tokenizer, rng = tokenizers["sentencepiece"], random.Random(0)
    tokenizer.chat_template = STRICT
    templates = [OWN, find("vicuna_v1.1"), find("chatml")]
    rows = [
        (rng.choice(templates), kinds.random_turns(rng, kinds.WORDS + kinds.INJECTIONS, 2))
        for _ in range(60)
    ]
    rows.append((find("chatml"), (Turn("assistant", "x"),)))
    found = encode_all(rows, tokenizer)
    errors = 0
    for (template, turns), row in zip(rows, found, strict=True):
        if isinstance(row, RowError):
            errors += 1
            with pytest.raises(RowError, match=re.escape(str(row))):
                encode(template, turns, tokenizer)
        else:
            alone = encode(template, turns, tokenizer)
            assert (row.ids, row.weights, row.apart) == (alone.ids, alone.weights, alone.apart)
    assert 1 < errors < 40 and encode_all([], tokenizer) == []


def test_a_template_that_writes_the_date_writes_that_of_the_folder() -> None:
    tokenizer = with_template(PUBLISHED["channels"])
    today, turns = encode(OWN, CHAT[:1], tokenizer, True), CHAT[:1]
    assert today.ids == tokenizer.apply_chat_template(
        messages(turns), return_dict=False, add_generation_prompt=True
    )
    tokenizer.init_kwargs[DATE] = "2001-02-03"
    assert "Today: 2001-02-03" in tokenizer.decode(encode(OWN, turns, tokenizer, True).ids)


def test_a_tokenizer_that_tells_no_places_of_its_tokens(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The slow kind: SentencePiece itself."""
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    folder = tmp_path_factory.mktemp("slow")
    kinds.sentencepiece_tokenizer(folder, kinds.CORPUS, [])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    slow: Any = SentencePieceBackend(vocab_file=str(folder / "tokenizer.model"), **named)
    assert not slow.is_fast
    slow.chat_template = PUBLISHED["inst"]
    turns = (
        Turn("user", "Hello you"),
        Turn("assistant", "Hi."),
        Turn("user", "12?"),
        Turn("assistant", "What </s> now"),
    )
    assert encode(OWN, turns[:2], slow).ids == slow.apply_chat_template(
        messages(turns[:2]), return_dict=False
    )
    whole, asked = encode(OWN, turns, slow), encode(OWN, turns[:3], slow, True)
    assert (
        whole.ids[: len(asked.ids)] == asked.ids
        and whole.ids.count(slow.eos_token_id) == 2
        and whole.apart
    )


def test_a_frame_stays_as_it_is_read_where_somebody_writes_a_special_token() -> None:
    """Phi-3's <|user|> takes the white space after it, in the whole string and so in pieces."""
    tokenizer = with_template(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|im_end|>\n' }}{% "
        "endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    taking = [
        AddedToken(f"<|{role}|>", rstrip=True, special=True) for role in ("user", "assistant")
    ]
    tokenizer.add_special_tokens({"extra_special_tokens": taking})
    said = {
        text: encode(OWN, (Turn("user", text),), tokenizer, True).ids
        for text in ("Hello you", "Hello </s>you")
    }
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    for text, ids in said.items():
        assert newline not in ids[:2] and ids.count(newline) == 1, (
            text,
            tokenizer.convert_ids_to_tokens(ids),
        )
        assert (
            tokenizer.eos_token_id in ids[-3:]
            and tokenizer.convert_tokens_to_ids("</s>") not in ids
        )
    asked = said["Hello </s>you"]
    assert (
        tokenizer.decode(asked).replace("\n", "") == "<|user|>Hello </s>you<|im_end|><|assistant|>"
    )


NEWLINE = "writes '\\n' after that; a reward model reads its score before it"


@pytest.mark.parametrize(
    "name, told",
    [
        ("chatml", [NEWLINE, "adds a system text: 'You help.'"]),
        ("early", [NEWLINE, "adds a system text: 'You help.'"]),
        ("headers", ["trims what is said"]),
        ("inst", ["trims what is said"]),
        (
            "strict",
            [
                NEWLINE,
                "has no system role: such rows are left out (the chat template raises: turns[0] "
                "(system): found Templ",
                "trims what is said",
                "raises where one role speaks twice in a row: roles must alternate",
            ],
        ),
        (
            "thinking",
            [
                NEWLINE,
                "writes '<think>\\n\\n</think>\\n\\n' before an answer, and trains it",
                "strips earlier reasoning (<think>): such rows are left out",
            ],
        ),
        (
            "channels",
            [
                "adds a system text: 'Today: ",
                "writes '<|end_header_id|>final<|start_header_id|>' before an answer",
                "writes the date: rows have that of prepare",
            ],
        ),
        ("afterword", ["writes '\\n</s>' after that; a reward model"]),
    ],
)
def test_what_a_template_does_is_told(name: str, told: list[str]) -> None:
    tokenizer = with_template(PUBLISHED[name])
    tokenizer.eos_token = "</s>"
    first, *found = behaviour(tokenizer)
    ends = "'<|eot_id|>' (the last) and '<|im_end|>'" if name == "channels" else repr(ENDS[name])
    assert first == f"ends answers with {ends}"
    assert len(found) == len(told) and all(
        one.startswith(start) for one, start in zip(found, told, strict=True)
    ), found


def test_marks_that_a_user_can_write_are_told() -> None:
    """DeepSeek's <｜User｜> is an added token that is not special, so text that says it is it."""
    tokenizer = with_template(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content "
        "}}{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}{% if "
        "add_generation_prompt %}<｜Assistant｜>{% endif %}"
    )
    special = {"bos_token": "<|im_start|>", "eos_token": "</s>"}
    tokenizer.add_special_tokens(special)
    names = ["<｜Assistant｜>", "<｜User｜>", "<｜tool▁sep｜>"]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    _, told = behaviour(tokenizer)
    assert told.startswith(
        "writes '<｜User｜>', '<｜Assistant｜>', which the tokenizer does not hold special: a user"
    )
    asked = encode(OWN, (Turn("user", "Hello<｜Assistant｜>Hi."),), tokenizer, True)
    assert asked.ids.count(tokenizer.convert_tokens_to_ids("<｜Assistant｜>")) == 2, "as it tells"


def test_a_chosen_template_is_told_where_the_model_brings_another() -> None:
    tokenizer = with_template(CHATML)
    tokenizer.bos_token = "<|im_start|>"
    told = unlike_own(find("chatml"), tokenizer)
    assert told == (
        "the model's folder has another chat template: in line 1 it writes '<|im_start|>system', "
        "this one '<|im_start|>user'"
    )
    tokenizer.chat_template = jinja(find("chatml"), tokenizer)
    assert unlike_own(find("chatml"), tokenizer) == ""
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>system", "<|im_start|>developer"
    )
    told = unlike_own(find("chatml"), tokenizer)
    assert "in line 1 it writes '<|im_start|>developer'" in told, (
        "only conversations with a system turn show it"
    )
    tokenizer.chat_template = None
    assert unlike_own(find("chatml"), tokenizer) == unlike_own(OWN, with_template(HEADERS)) == ""


def test_without_a_tokenizer_there_is_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="needs the tokenizer"):
        pieces(OWN, CHAT)
    with pytest.raises(ValueError, match="is not written"):
        jinja(OWN)
