"""What tests of data share: tokenizers of several kinds, and the published one that comes with
vLLM.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rayward.data.templates.saved_tokenizer import save_tokenizer
from rayward.data.templates.tokenizer import train_tokenizer
from tests.data.kinds import CORPUS, SPECIAL, legacy, sentencepiece_like, sentencepiece_tokenizer


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By kind. A test that gives one a chat template gives it before each use: others do, too."""
    return {
        "bytes": train_tokenizer(CORPUS, 500, ("</s>", *SPECIAL), 2048),
        "metaspace": sentencepiece_like("metaspace"),
        "normalizer": sentencepiece_like("normalizer"),
        "sentencepiece": sentencepiece_tokenizer(
            tmp_path_factory.mktemp("sentencepiece"), CORPUS, SPECIAL
        ),
        "legacy": legacy(
            sentencepiece_tokenizer(tmp_path_factory.mktemp("legacy"), CORPUS, SPECIAL)
        ),
        "first": sentencepiece_tokenizer(
            tmp_path_factory.mktemp("first"), CORPUS, SPECIAL, legacy=False
        ),
    }


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of Mistral 7B v0.1's tokenizer, which vLLM's dependency mistral_common ships, with
    OpenChat's end token.

    Its vocabulary is that of OpenChat 3.5 and Starling up to the padding of the model's embeddings.
    """
    from transformers import AutoTokenizer

    found = find_spec("mistral_common")
    model = (
        Path(str(found.origin)).parent / "data" / "tokenizer.model.v1" if found else Path("nowhere")
    )
    if not model.is_file():
        pytest.skip(f"no mistral_common with data/tokenizer.model.v1 is installed ({model})")
    folder = tmp_path_factory.mktemp("mistral")
    shutil.copy(model, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": True,
        "add_bos_token": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(["<|end_of_turn|>"], special_tokens=True) == 1
    save_tokenizer(tokenizer, folder / "openchat")
    shutil.copy(model, folder / "openchat" / "tokenizer.model")
    return folder / "openchat"
