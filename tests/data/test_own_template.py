"""A tokenizer's own chat template: its text, its mask, and the refusal of those that cannot be trained from."""

from __future__ import annotations

import random
from typing import Any

import pytest

from data.records import Turn
from data.template_jinja import jinja
from data.templates import TEMPLATES, encode, end_token, find, pieces, stop_token_ids
from data.tokenizer import train_tokenizer

OWN = find("tokenizer")
SPECIAL = ("<|im_end|>", "<|im_start|>", "</s>", "<|end_of_turn|>", "<|eot_id|>", "<|start_header_id|>",
           "<|end_header_id|>")  # fmt: skip
CORPUS = ["user assistant system Hello you there", "What is 12 + 345?", "It is 357.", "[INST] x [/INST]"]
CHAT = (Turn("user", "Hello there"), Turn("assistant", "Hi <|im_end|> you"), Turn("user", "</s> 12?"),
        Turn("assistant", "345."))  # fmt: skip
TRIMMING = (
    "{{ bos_token }}{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{%- if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ m.content | trim + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def with_template(form: str | None) -> Any:
    tokenizer = train_tokenizer(CORPUS, 320, SPECIAL, 512)
    tokenizer.chat_template = form
    return tokenizer


@pytest.mark.parametrize("name", ["chatml", "openchat_3.5", "vicuna_v1.1", "openchat_3.6", "openchat_v3.1"])
def test_our_templates_written_as_jinja_come_back_the_same(name: str) -> None:
    tokenizer = with_template(jinja(TEMPLATES[name]))
    for turns, asks in ((CHAT, False), (CHAT[:3], True), ((Turn("system", "Be brief."), *CHAT), False)):
        ours, own = encode(TEMPLATES[name], turns, tokenizer, asks), encode(OWN, turns, tokenizer, asks)
        assert tokenizer.decode(own.ids) == tokenizer.decode(ours.ids)
        assert own.ids.count(tokenizer.bos_token_id) == 1
        if name != "openchat_3.6":  # there, "\n\n" before an answer is a piece of its own in both, but not in history
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
        applied = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        encoded = encode(OWN, turns, tokenizer)
        assert encoded.ids == applied["input_ids"]
        assert encoded.weights == [float(trained) for trained in applied["assistant_masks"]]


def test_a_prompt_is_a_prefix_and_nothing_that_is_said_is_special() -> None:
    tokenizer = with_template(TRIMMING)
    whole = encode(OWN, CHAT, tokenizer)
    for end in (1, 3):
        prompt = encode(OWN, CHAT[:end], tokenizer, True)
        assert whole.ids[: len(prompt.ids)] == prompt.ids and whole.weights[: len(prompt.ids)] == prompt.weights
        assert whole.weights[len(prompt.ids)] == 1.0
    (stop,) = stop_token_ids(OWN, tokenizer)
    assert whole.ids.count(stop) == len(CHAT) and whole.ids.count(tokenizer.convert_tokens_to_ids("</s>")) == 0
    assert "Hi <|im_end|> you<|im_end|>" in tokenizer.decode(whole.ids)


def test_weights_of_turns_cover_content_and_end_token() -> None:
    tokenizer = with_template(TRIMMING)
    turns = (Turn("user", "Hello", 0.5), Turn("assistant", "you", 0.1), Turn("user", "12?"), Turn("assistant", "345"))
    encoded = encode(OWN, turns, tokenizer)
    spans = {w: [i for i, own in zip(encoded.ids, encoded.weights, strict=True) if own == w] for w in (0.5, 0.1, 1.0)}
    assert {w: tokenizer.decode(ids) for w, ids in spans.items()} == {
        0.5: "Hello", 0.1: "you<|im_end|>", 1.0: "345<|im_end|>"}  # fmt: skip


@pytest.mark.parametrize("form, told", [
    (None, "has no chat template of its own"),
    ("{{ messages[0].content", "the chat template raises: .*TemplateSyntaxError"),
    (TRIMMING.replace("m.content | trim + '<|im_end|>' }}{% endgen", "m.content | upper + '<|im_end|>' }}{% endgen"),
     "the chat template rewrites what is said: turns.1. .assistant.: found 'HI, YOU.*expected 'Hi, you.'"),
    (TRIMMING.replace("{{ m.content | trim + '<|im_end|>' }}{% endgen", "{{ m.content }}{% endgen"),
     "no special token ends an answer: a model trained so never learns to stop: turns.1. .assistant."),
    (TRIMMING.replace("'<|im_start|>' + m.role", "m.content + m.role"),
     "the chat template repeats what the user says: turns.0. .user.: found it 2 times"),
    (TRIMMING.replace("{{ '<|im_start|>assistant\\n' }}", "{{ '<|im_start|>assistant\\n<think>' }}"),
     "asks for an answer elsewhere than it writes it: turns.1. .* expected '<think>', with which")])  # fmt: skip
def test_templates_that_cannot_be_trained_from_are_refused(form: str | None, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        stop_token_ids(OWN, with_template(form))


def test_without_a_tokenizer_there_is_nothing_to_show() -> None:
    with pytest.raises(ValueError, match="needs the tokenizer"):
        pieces(OWN, CHAT)
    with pytest.raises(ValueError, match="is not written"):
        jinja(OWN)
