"""The ids that OpenChat and Starling publish, on the vocabulary that they were published for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rayward.data.records import Turn
from rayward.data.templates.known_ids import EOT_ID, KNOWN, assert_known_ids, recognised
from rayward.data.templates.template import encode, find
from rayward.data.templates.tokenizer import load_tokenizer, train_tokenizer

ORIGINALS = Path(os.environ.get("RAYWARD_TEST_TOKENIZERS") or "nowhere")
ESCAPED = [
    1824,
    511,
    523,
    28713,
    28767,
    1867,
    28713,
    28767,
    523,
    28766,
    416,
    28730,
    1009,
    28730,
    499,
    28766,
    28767,
    2072,
    28804,
]


@pytest.fixture(scope="module")
def tokenizer(mistral: Path) -> Any:
    return load_tokenizer(mistral)


def test_the_published_ids_and_weights_come_out(tokenizer: Any) -> None:
    assert (
        recognised(tokenizer)
        and tokenizer.convert_tokens_to_ids("<|end_of_turn|>") == EOT_ID == 32000
    )
    for name in ("openchat_3.5", "openchat_3.5_code", "openchat_3.5_math"):
        assert_known_ids(find(name), tokenizer)
    assert [len(known.ids) for known in KNOWN] == [17, 39, 14, 24, 72]
    weights = KNOWN[-1].weights
    assert [weights.count(weight) for weight in (0.0, 0.1, 1.0)] == [39, 18, 15] and len(
        weights
    ) == 72


def test_special_tokens_that_are_said_are_pieces_of_text(tokenizer: Any) -> None:
    asked = (Turn("user", "What do <s> </s> <|end_of_turn|> mean?"),)
    ids = encode(find("openchat_3.5"), asked, tokenizer, True).ids
    assert (
        ids[8:-8] == ESCAPED and ids.count(1) == 1 and ids.count(2) == 0 and ids.count(32000) == 1
    )


def test_a_tokenizer_that_lost_its_spaces_is_refused(mistral: Path, tmp_path: Path) -> None:
    """The same file in a folder that says Mistral, without the rules of tokenizer.json: nothing
    comes before a text.
    """
    from transformers import AutoConfig, AutoTokenizer

    (tmp_path / "tokenizer.model").write_bytes((mistral / "tokenizer.model").read_bytes())
    broken = AutoTokenizer.from_pretrained(tmp_path, config=AutoConfig.for_model("mistral"))
    broken.add_tokens(["<|end_of_turn|>"], special_tokens=True)
    assert recognised(broken)
    with pytest.raises(
        ValueError, match="this is the tokenizer of OpenChat 3.5, but 'Hello'.*number 1 on"
    ):
        assert_known_ids(find("openchat_3.5"), broken)
    assert_known_ids(find("vicuna_v1.1"), broken)  # promises nothing here


def test_other_tokenizers_are_not_measured_by_it() -> None:
    other = train_tokenizer(["GPT4 Correct User: Hello"], 300, ("<|end_of_turn|>",), 128)
    assert not recognised(other)
    assert_known_ids(find("openchat_3.5"), other)


@pytest.mark.skipif(
    not ORIGINALS.is_dir(),
    reason="RAYWARD_TEST_TOKENIZERS names no folder with published tokenizers",
)
def test_published_tokenizers() -> None:
    """Each folder in it with a tokenizer; those that are OpenChat 3.5's or Starling's."""
    folders = [path.parent for path in ORIGINALS.rglob("tokenizer_config.json")]
    known = [tokenizer for tokenizer in map(load_tokenizer, folders) if recognised(tokenizer)]
    if not known:
        pytest.skip(f"{ORIGINALS}: no tokenizer of OpenChat 3.5 or Starling among {len(folders)}")
    for tokenizer in known:
        assert_known_ids(find("openchat_3.5"), tokenizer)
        asked = (Turn("user", "What do <s> </s> <|end_of_turn|> mean?"),)
        assert encode(find("openchat_3.5"), asked, tokenizer, True).ids[8:-8] == ESCAPED
