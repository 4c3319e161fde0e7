"""Models by their hub name, ORG/NAME or ORG/NAME@REVISION: where their files lie on this machine.

A name is fetched into the hub's cache (HF_HOME) once, with the token of HF_TOKEN where there is
one; from then on it is the folder of that snapshot, without the network.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

FORM = "ORG/NAME or ORG/NAME@REVISION"
NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?")
OTHER_FORMATS = [
    "*.pth",
    "*.gguf",
    "*.onnx",
    "*.msgpack",
    "*.h5",
    "*.tflite",
    "original/*",
    "onnx/*",
]
TRUST = "RAYWARD_TRUST_REMOTE_CODE"
PINNED: dict[str, str] = {}
"""Commits of hub names, by which this process means them from now on, wherever their branch has
gone since.
"""


def is_hub_name(model: str) -> bool:
    """Whether a model is named as on the hub, and no folder of this name is here."""
    return bool(NAME.fullmatch(model)) and not Path(model).exists()


def local(model: str) -> str:
    """The folder of a model: a path made absolute, or the cached snapshot of a hub name.

    ValueError for a name that is neither a folder here nor in the cache.
    """
    return (
        str(Path(model).resolve()) if not is_hub_name(model) else str(snapshot(model, fetch=False))
    )


def fetched(model: str, weights: bool = True) -> str:
    """The same, after the snapshot of a hub name was fetched where it is missing, with its weights
    or without.
    """
    return str(snapshot(model, fetch=True, weights=weights)) if is_hub_name(model) else local(model)


def snapshot(name: str, fetch: bool, weights: bool = True) -> Path:
    """The snapshot's folder; `fetch` gets what the cache lacks. ValueError where that cannot be,
    and what to do.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repository, revision = _revision(name)
    unused = [*_unused(name, fetch), *([] if weights else ["*.safetensors", "*.bin"])]
    try:
        found = snapshot_download(
            repository, revision=revision, local_files_only=not fetch, ignore_patterns=unused
        )
        return Path(found)
    except GatedRepoError:
        told = (
            "is gated: set HF_TOKEN to the token of an account that has been granted access to it"
        )
    except RepositoryNotFoundError:
        told = "is unknown to the hub, or private: is it spelled right, and HF_TOKEN set?"
    except LocalEntryNotFoundError:
        told = f"is not in the hub's cache{', and the hub cannot be reached' if fetch else ''}"
    except Exception as error:  # a network and its libraries raise what they like
        told = f"cannot be fetched: {first_line(error)}"
    raise ValueError(f"{name} is no folder here, and as a hub name it {told}")


def _revision(name: str) -> tuple[str, str | None]:
    """The repository and the commit, tag or branch that is meant (None: main)."""
    repository, _, revision = name.partition("@")
    return repository, PINNED.get(name) or revision or None


def _unused(name: str, fetch: bool) -> list[str]:
    """What is not needed of a repository: weights in other formats, and pickled ones beside
    safetensors.
    """
    if not fetch:
        return OTHER_FORMATS
    from huggingface_hub import HfApi

    repository, revision = _revision(name)
    try:
        files = HfApi().list_repo_files(repository, revision=revision)
    except Exception:  # whatever a network does; what is in the cache is then what there is
        return OTHER_FORMATS
    return [
        *OTHER_FORMATS,
        *(["*.bin"] if any(file.endswith(".safetensors") for file in files) else []),
    ]


def config_of(folder: str | Path) -> Any:
    """The `PretrainedConfig` of a model's folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=trusted())


def has_score_head(config: Any) -> bool:
    """Whether the model of this config gives scores and no text."""
    return any("SequenceClassification" in name for name in config.architectures or [])


def read_tokenizer(folder: str | Path, **named: Any) -> Any:
    """The tokenizer of a folder as transformers reads it; see
    `rayward.data.templates.tokenizer.load_tokenizer` for one that is whole.

    ValueError where that fails, with the file that is no JSON where it is that.
    """
    from transformers import AutoTokenizer

    try:
        # Mistral's folders hold its own format too, which transformers would take: it keeps no
        # special token as text.
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trusted(), mistral_format=False, **named
        )
    except Exception as error:  # transformers, tokenizers and custom code raise what they like
        for name in (
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "special_tokens_map.json",
        ):
            if (path := Path(folder) / name).is_file():
                read_json(path)
        told = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{folder}: the tokenizer cannot be read: {told}") from error


def first_line(error: Exception) -> str:
    """What an exception of a library says, in a line; "" where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a model says. ValueError with the file, line and column where it is no
    JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, and a JSON object is needed")
    return found


def trust(remote_code: bool) -> None:
    """Let this process, and those that it starts, run code that comes with models, or not."""
    os.environ[TRUST] = "1" if remote_code else "0"


def trusted() -> bool:
    """Whether code that comes with a model may run: model.trust_remote_code, or of commands without
    a config the environment's RAYWARD_TRUST_REMOTE_CODE=1."""
    return os.environ.get(TRUST) == "1"
