"""Models by their hub name, ORG/NAME or ORG/NAME@REVISION: where their files lie on this machine.

A name is fetched into the hub's cache (HF_HOME) once, with the token of HF_TOKEN where there is
one; from then on it is the folder of that snapshot, without the network.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

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
"""Commits that hub names stand for in this process, wherever their branch has gone since."""


def is_hub_name(model: str) -> bool:
    """Whether a model is named as on the hub, and no folder of this name is here."""
    return bool(NAME.fullmatch(model)) and not Path(model).exists()


def local(model: str) -> str:
    """The folder of a model: a path made absolute, or the cached snapshot of a hub name.

    ValueError for a name that is neither a folder here nor in the cache.
    """
    if is_hub_name(model):
        return str(snapshot(model, fetch=False))
    return str(Path(model).resolve())


def model_title(folder: str | Path) -> str:
    """What a model's folder is called: its name, or ORG/NAME of a snapshot in the hub's cache."""
    path = Path(folder).resolve()
    cached = path.parent.parent.name
    if path.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/", 1)
    return path.name


def fetched(model: str, weights: bool = True) -> str:
    """As `local`, after what is missing of a hub name was fetched, with its weights or without."""
    return str(snapshot(model, fetch=True, weights=weights)) if is_hub_name(model) else local(model)


def snapshot(name: str, fetch: bool, weights: bool = True) -> Path:
    """The snapshot's folder; `fetch` gets what the cache lacks. ValueError: why not, what to do."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    repository, revision = _revision(name)
    unused = [*_unused(name, fetch), *([] if weights else ["*.safetensors", "*.bin"])]
    try:
        folder = snapshot_download(
            repository, revision=revision, local_files_only=not fetch, ignore_patterns=unused
        )
        return Path(folder)
    # Before RepositoryNotFoundError, of which it is a kind.
    except GatedRepoError:
        fault = (
            "is gated: set HF_TOKEN to the token of an account that has been granted access to it"
        )
    except RepositoryNotFoundError:
        fault = "is unknown to the hub, or private: is it spelled right, and HF_TOKEN set?"
    except LocalEntryNotFoundError:
        fault = f"is not in the hub's cache{', and the hub cannot be reached' if fetch else ''}"
    except Exception as error:  # a network and its libraries raise what they like
        fault = f"cannot be fetched: {first_line(error)}"
    raise ValueError(f"{name} is no folder here, and as a hub name it {fault}")


def _revision(name: str) -> tuple[str, str | None]:
    """The repository and the commit, tag or branch that is meant (None: main)."""
    repository, _, revision = name.partition("@")
    return repository, PINNED.get(name) or revision or None


def _unused(name: str, fetch: bool) -> list[str]:
    """Patterns of what is not needed: weights of other formats, pickled ones beside safetensors."""
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


def config_of(folder: str | Path) -> PreTrainedConfig:
    """The `PretrainedConfig` of a model's folder."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=trusted())


def has_score_head(config: PreTrainedConfig) -> bool:
    """Whether the model of this config gives scores and no text."""
    return any("SequenceClassification" in name for name in config.architectures or [])


def read_tokenizer(folder: str | Path, **arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder as transformers reads it.

    See `rayward.data.templates.tokenizer.load_tokenizer` for one that is whole. ValueError where
    that fails, with the file that is no JSON where it is that.
    """
    from transformers import AutoTokenizer

    try:
        # Mistral's folders hold its own format too, which transformers would take: it keeps no
        # special token as text.
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trusted(), mistral_format=False, **arguments
        )
    except Exception as error:  # transformers, tokenizers and custom code raise what they like
        # Broken JSON is the usual cause, of which transformers does not name the file.
        for name in (
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
            "special_tokens_map.json",
        ):
            if (path := Path(folder) / name).is_file():
                read_json(path)
        details = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"{folder}: the tokenizer cannot be read: {details}") from error


def first_line(error: Exception) -> str:
    """What an exception of a library says, in a line; "" where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "")


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a model says. ValueError with file, line and column: no JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, and a JSON object is needed")
    return values


def trust(remote_code: bool) -> None:
    """Let this process, and those that it starts, run code that comes with models, or not."""
    # Processes that are started inherit the environment.
    os.environ[TRUST] = "1" if remote_code else "0"


def trusted() -> bool:
    """Whether code that comes with a model may run.

    By model.trust_remote_code, or of commands without a config RAYWARD_TRUST_REMOTE_CODE=1.
    """
    return os.environ.get(TRUST) == "1"
