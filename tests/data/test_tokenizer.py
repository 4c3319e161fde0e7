"""The trained tokenizer: lossless, repeatable, reloadable; and the pad token of any that is
loaded.
"""

from __future__ import annotations

import json
import random

import pytest

from rayward.data.templates.tokenizer import load_tokenizer, train_tokenizer

EOT = "<|end_of_turn|>"
TEXTS = [
    "The opposite of hot is cold.",
    "What is 12 + 345?",
    "It is 357.",
    "Grüße, 日本語 😀\n\n\tdone",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400, (EOT, "<|extra|>"), 512)


def test_special_tokens(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", EOT, "<|extra|>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.model_max_length == 512
    assert len(tokenizer) <= 400
    assert tokenizer("hot").input_ids[0] != 1  # no BOS unless somebody puts it there
    assert tokenizer.encode("hot<s>hot").count(1) == 1


def test_round_trip_is_lossless(tokenizer):
    rng = random.Random(0)
    pools = [
        "abc XYZ",
        " \t\n\r",
        "0123456789",
        "'.,!?;:-()[]{}<>|/\\\"",
        "éüß",
        "日本語",
        "😀🏳️‍🌈",
        "\u00a0\u2028\x00\x7f",
    ]
    for _ in range(300):
        text = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randrange(60)))
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode(tokenizer(text, split_special_tokens=True).input_ids) == text


def test_digits_stand_alone(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode("a 12 and 345, x6"))
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("123456")


def test_same_texts_same_tokenizer(tokenizer):
    again = train_tokenizer(iter(TEXTS), 400, (EOT, "<|extra|>"), 512)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("model_type", [None, "llama", "mistral"])
def test_saved_folder_reloads_with_equal_ids(model_type, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    # A model folder's config must not make AutoTokenizer take another class with other rules.
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = load_tokenizer(tmp_path)
    for text in (*TEXTS, f"a{EOT}b <s>", "  spaced 99"):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
    assert loaded.model_max_length == 512
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert len(loaded) == len(tokenizer)


@pytest.mark.parametrize(
    "vocab_size, special_tokens, message",
    [
        (258, (EOT,), "vocab_size is 258, but 256 bytes and 3 special tokens need at least 259"),
        (400, (), "start with the end token"),
        (400, ("<s>",), "start with the end token"),
    ],
)
def test_mistakes_of_the_caller(vocab_size, special_tokens, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(TEXTS, vocab_size, special_tokens, 512)


@pytest.mark.parametrize(
    "spare, unk, expected",
    [
        (("<|pad_0|>",), "<unk>", "<|pad_0|>"),
        (
            ("<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
            None,
            "<|finetune_right_pad_id|>",
        ),
        (("<|reserved_special_token_0|>",), None, "<|reserved_special_token_0|>"),
        ((), "<unk>", "<unk>"),
        ((), None, None),
    ],
)
@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_pad_token_is_found_and_never_eos(spare, unk, expected, pad_is_eos, tmp_path):
    extra = (*spare, unk) if unk else spare
    tokenizer = train_tokenizer(TEXTS, 400, ("</s>", "<padlock>", *extra), 512)
    # <pad> itself is spelled otherwise in the vocabulary, so that nothing named like it is there by
    # accident.
    tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        saved = (tmp_path / name).read_text().replace('"<pad>"', '"<first>"')
        (tmp_path / name).write_text(saved)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"pad_token": "</s>" if pad_is_eos else None, "unk_token": unk}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if expected is None:
        with pytest.raises(ValueError, match="no pad token other than its end token '</s>'"):
            load_tokenizer(tmp_path)
        return
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == expected
    assert loaded.pad_token_id not in (None, loaded.eos_token_id)
    assert len(loaded) == len(tokenizer)
