"""The ids that OpenChat and Starling publish, on a vocabulary that holds their pieces in their places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data.known_ids import KNOWN, assert_known_ids, recognised
from data.records import Turn
from data.templates import encode, find
from data.tokenizer import load_tokenizer, train_tokenizer

ORIGINALS = os.environ.get("RAYWARD_TEST_TOKENIZERS")
# Read off the published lists by setting their ids beside the texts that they stand for.
PIECES = {
    420: "▁G", 6316: "PT", 28781: "4", 3198: "▁Cor", 3123: "rect", 1247: "▁User", 21631: "▁Assistant", 28747: ":",
    22557: "▁Hello", 15359: "▁Hi", 1602: "▁How", 460: "▁are", 368: "▁you", 3154: "▁today", 28804: "?", 7596: "▁Code",
    26256: "▁Implement", 2936: "▁quick", 7653: "sort", 1413: "▁using", 334: "▁C", 1680: "++", 995: "▁You", 264: "▁a",
    10865: "▁helpful", 13892: "▁assistant", 28723: ".", 1824: "▁What", 28742: "'", 28713: "s", 272: "▁the",
    8086: "▁weather", 737: "▁like", 315: "▁I", 28719: "m", 396: "▁an", 16107: "▁AI", 304: "▁and", 949: "▁don",
    28707: "t", 506: "▁have", 2735: "▁access", 298: "▁to", 1353: "▁real", 28733: "-", 1536: "time", 1178: "▁data",
    5434: "▁Oh", 28725: ",", 1103: "▁right", 541: "▁can", 873: "▁know", 1877: "▁check", 4400: "▁website", 442: "▁or",
    954: "▁app", 354: "▁for", 1080: "▁most", 1868: "▁current", 1871: "▁information", 511: "▁do", 523: "▁<", 28767: ">",
    1867: "▁</", 28766: "|", 416: "end", 28730: "_", 1009: "of", 499: "turn", 2072: "▁mean", 28705: "▁", 28777: "G",
}  # fmt: skip
ESCAPED = [1824, 511, 523, 28713, 28767, 1867, 28713, 28767, 523, 28766, 416, 28730, 1009, 28730, 499, 28766, 28767,
           2072, 28804]  # fmt: skip


def rebuilt(legacy: bool = True) -> Any:
    """A tokenizer with the published pieces at their ids and fillers elsewhere; `legacy`: ▁ before every text."""
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [(PIECES.get(number, f"\ue000{number}"), -1.0) for number in range(32002)]
    for number, special in ((0, "<unk>"), (1, "<s>"), (2, "</s>"), (32000, "<|end_of_turn|>")):
        vocabulary[number] = (special, -100.0)  # never the best way to write text, as in BPE without merges to them
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if legacy else spaces
    tokenizer.add_special_tokens(["<s>", "</s>", "<|end_of_turn|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end_of_turn|>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return rebuilt()


def test_the_published_ids_and_weights_come_out(tokenizer: Any) -> None:
    assert recognised(tokenizer)
    for name in ("openchat_3.5", "openchat_3.5_code", "openchat_3.5_math"):
        assert_known_ids(find(name), tokenizer)
    assert [len(known.ids) for known in KNOWN] == [17, 39, 14, 24, 72]
    weights = KNOWN[-1].weights
    assert [weights.count(weight) for weight in (0.0, 0.1, 1.0)] == [39, 18, 15] and len(weights) == 72


def test_special_tokens_that_are_said_are_pieces_of_text(tokenizer: Any) -> None:
    asked = (Turn("user", "What do <s> </s> <|end_of_turn|> mean?"),)
    ids = encode(find("openchat_3.5"), asked, tokenizer, True).ids
    assert ids[8:-8] == ESCAPED and ids.count(1) == 1 and ids.count(2) == 0 and ids.count(32000) == 1


def test_a_tokenizer_that_lost_its_spaces_is_refused() -> None:
    broken = rebuilt(legacy=False)
    assert recognised(broken)
    with pytest.raises(ValueError, match="this is the tokenizer of OpenChat 3.5, but 'Hello'.*number 1 on"):
        assert_known_ids(find("openchat_3.5"), broken)
    assert_known_ids(find("vicuna_v1.1"), broken)  # promises nothing here


def test_other_tokenizers_are_not_measured_by_it() -> None:
    other = train_tokenizer(["GPT4 Correct User: Hello"], 300, ("<|end_of_turn|>",), 128)
    assert not recognised(other)
    assert_known_ids(find("openchat_3.5"), other)


@pytest.mark.skipif(not ORIGINALS, reason="RAYWARD_TEST_TOKENIZERS names no folder with published tokenizers")
def test_published_tokenizers() -> None:
    """Each folder in it with a tokenizer; at least one must be OpenChat 3.5's or Starling's."""
    assert ORIGINALS is not None
    folders = [path.parent for path in Path(ORIGINALS).rglob("tokenizer_config.json")]
    known = [tokenizer for tokenizer in map(load_tokenizer, folders) if recognised(tokenizer)]
    assert known, f"{ORIGINALS}: no tokenizer of OpenChat 3.5 or Starling among {len(folders)}"
    for tokenizer in known:
        assert_known_ids(find("openchat_3.5"), tokenizer)
        asked = (Turn("user", "What do <s> </s> <|end_of_turn|> mean?"),)
        assert encode(find("openchat_3.5"), asked, tokenizer, True).ids[8:-8] == ESCAPED
