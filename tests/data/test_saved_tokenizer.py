"""A saved tokenizer reads back as it was, a served conversation is a trained one, and no text is
lost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from rayward.data.records import Turn
from rayward.data.templates.jinja import jinja
from rayward.data.templates.published.program import DATE
from rayward.data.templates.saved_tokenizer import (
    AWKWARD,
    PLAIN,
    assert_keeps_text,
    assert_served_as_trained,
    save_tokenizer,
)
from rayward.data.templates.template import TEMPLATES, encode, find
from rayward.data.templates.tokenizer import load_tokenizer, train_tokenizer
from tests.data.kinds import CORPUS, KINDS
from tests.data.published import PUBLISHED

TABLE = {name: template for name, template in TEMPLATES.items() if not template.is_tokenizers}
# A lone space before what is said, which a byte-level tokenizer joins to it: no string is read as
# the pieces are.
UNSERVED = {("openchat_v1", "bytes")}


@pytest.mark.parametrize("kind", ["sentencepiece", "legacy", "bytes", "normalizer"])
@pytest.mark.parametrize("model_type", [None, "llama", "mistral"])
def test_what_was_saved_reads_back_as_it_was(
    kind: str, model_type: str | None, tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    """By itself, and in the folder of a model, whose config.json decides how transformers and vLLM
    read it.
    """
    tokenizer, config = tokenizers[kind], AutoConfig.for_model(model_type) if model_type else None
    tokenizer.chat_template = jinja(find("vicuna_v1.1"), tokenizer)
    save_tokenizer(tokenizer, tmp_path, config)
    if config:
        config.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    for turns in (*PLAIN, *AWKWARD):
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        assert (
            read.apply_chat_template(messages)["input_ids"]
            == tokenizer.apply_chat_template(messages)["input_ids"]
        )
        assert encode(find("vicuna_v1.1"), turns, read) == encode(
            find("vicuna_v1.1"), turns, tokenizer
        )
    assert_served_as_trained(find("vicuna_v1.1"), read)


def test_llama_s_loses_its_legacy_when_transformers_saves_it(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    """The fault that is mended: should this fail, transformers has mended it and MENDS can go."""
    tokenizer = tokenizers["sentencepiece"]
    tokenizer.save_pretrained(tmp_path)
    first = "<s>USER: Hello"
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(first) != tokenizer.tokenize(first)
    save_tokenizer(tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).tokenize(first) == tokenizer.tokenize(first)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["legacy"] is True


def test_a_folder_that_would_be_read_otherwise_is_refused(
    tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    """Qwen2's config has Llama's files read as Qwen's, whatever their own config says."""
    with pytest.raises(
        ValueError, match=r"does not read back as it was saved: of .* token 1 on is '▁.* not '"
    ):
        save_tokenizer(tokenizers["sentencepiece"], tmp_path, AutoConfig.for_model("qwen2"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TABLE)
def test_every_template_is_served_as_it_is_trained(
    name: str, kind: str, tokenizers: dict[str, Any]
) -> None:
    tokenizer = tokenizers[kind]
    tokenizer.chat_template = jinja(TABLE[name], tokenizer)
    if (name, kind) in UNSERVED:
        with pytest.raises(
            ValueError,
            match="openchat_v1 with this tokenizer trains other tokens than a server gives",
        ):
            assert_served_as_trained(TABLE[name], tokenizer)
    else:
        assert_served_as_trained(TABLE[name], tokenizer)


@pytest.mark.parametrize("name", PUBLISHED)
def test_so_is_the_tokenizer_s_own(name: str, tokenizers: dict[str, Any]) -> None:
    for kind in KINDS:
        tokenizers[kind].chat_template = PUBLISHED[name]
        assert_served_as_trained(find("tokenizer"), tokenizers[kind])


def test_another_template_in_the_folder_is_refused(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["bytes"]
    for form in (
        "<s>" + jinja(find("chatml"), tokenizer),
        jinja(find("chatml"), tokenizer).replace("assistant", "Assistant"),
        jinja(find("chatml"), tokenizer).replace("message['content']", "message['content'] | trim"),
    ):
        tokenizer.chat_template = form
        with pytest.raises(
            ValueError, match=r"chatml with this tokenizer trains other tokens .* token \d+ on is"
        ):
            assert_served_as_trained(find("chatml"), tokenizer)


@pytest.mark.parametrize("name", TABLE)
def test_there_is_one_bos_where_a_template_begins_with_it(name: str) -> None:
    """SmolLM2's BOS is ChatML's <|im_start|>."""
    template = TABLE[name]
    for bos in ("<s>", *template.special_tokens[1:]):
        special = dict.fromkeys((*template.special_tokens, "<s>"))
        tokenizer = train_tokenizer(CORPUS, 300, tuple(special), 512)
        tokenizer.bos_token = bos
        tokenizer.chat_template = jinja(template, tokenizer)
        for turns in PLAIN:
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            served = tokenizer.apply_chat_template(messages)["input_ids"]
            for ids in (encode(template, turns, tokenizer).ids, served):
                assert ids[:1] == [tokenizer.bos_token_id] or not template.bos
                assert ids[1:2] != [tokenizer.bos_token_id]


def test_a_tokenizer_that_loses_text_is_refused(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    for kind in ("bytes", "sentencepiece", "legacy"):
        assert_keeps_text(tokenizers[kind])
    with pytest.raises(ValueError, match=r"loses text: 'Grüße, Ångström' becomes 'Gr<unk><unk>e"):
        assert_keeps_text(tokenizers["metaspace"])
    tokenizers["bytes"].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"})
    )
    with pytest.raises(
        ValueError, match="loses text: 'Hello there' becomes 'Hellothere'. Its files are of"
    ):
        assert_keeps_text(AutoTokenizer.from_pretrained(tmp_path))


def test_the_day_of_a_folder_stays_with_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(
        CORPUS,
        300,
        ("<|im_end|>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        512,
    )
    tokenizer.chat_template = PUBLISHED["channels"]
    tokenizer.init_kwargs[DATE] = "2001-02-03"
    save_tokenizer(tokenizer, tmp_path / "one")
    save_tokenizer(load_tokenizer(tmp_path / "one"), tmp_path / "two")
    read = load_tokenizer(tmp_path / "two")
    assert "2001-02-03" in read.decode(
        encode(find("tokenizer"), (Turn("user", "Hi"),), read, True).ids
    )
    assert_served_as_trained(find("tokenizer"), read)
