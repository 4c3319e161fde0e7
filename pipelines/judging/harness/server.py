"""The server that `judge tasks` asks: a folder's own, or an endpoint, looked at before it is asked
thousands of questions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from rayward.pipelines.data_tools.endpoint import AT_URL, is_folder, model_name

PROBE_IDS = [5, 6, 7]
"""A prompt of ids that every vocabulary has."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The model that is asked: how it is called, where its tokenizer is, and what identifies it.

    `context_tokens`: of a folder as it will be served, of an endpoint as it says.
    """

    name: str
    tokenizer: str
    identity: str
    context_tokens: int | None
    chat_template: str | None


def asked(options: argparse.Namespace, chat: bool) -> Asked:
    """The model of the command line. ValueError: it is none, or lacks what is needed of it."""
    from rayward.data.feedback.prompt_files import digest
    from rayward.data.model_files.folder import positions
    from rayward.data.model_files.hub_models import config_of, fetched, is_hub_name
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.run.given import model_digest

    stage = Path(options.model) / "model"
    if not is_folder(options.model) and is_folder(str(stage)):
        options.model = str(stage)  # the folder of a run's stage
    if is_hub_name(options.model):
        options.model = fetched(options.model)
    name = model_name(options.model)
    if is_folder(options.model):
        if options.tokenizer:
            raise ValueError("--tokenizer is for an endpoint; a folder has its own")
        context = positions(config_of(options.model)) or options.context_tokens
        context = min(context, options.context_tokens)
        template = _chat_template(options.model, options.template) if chat else None
        return Asked(name, options.model, model_digest(Path(options.model)), context, template)
    if not options.tokenizer:
        raise ValueError(
            f"{options.model}: requests to an endpoint are token ids: --tokenizer says whose, a "
            "folder or hub name"
        )
    tokenizer = fetched(options.tokenizer, weights=False)
    template = _chat_template(tokenizer, options.template) if chat else None
    # Figures of an endpoint are of its address and of the tokens that it was asked with.
    address, ids = re.split(AT_URL, options.model)[1].rstrip("/"), load_tokenizer(tokenizer)
    vocabulary = json.dumps(sorted(ids.get_vocab().items()))
    identity = f"{address}, tokenizer {digest(vocabulary)[:16]}"
    with httpx.Client(headers=_headers(options), timeout=options.timeout) as client:
        context = _context(client, address, name, options.context_tokens)
    return Asked(name, tokenizer, identity, context, template)


def _headers(options: argparse.Namespace) -> dict[str, str]:
    return {"Authorization": f"Bearer {os.environ.get(options.model_key) or 'none'}"}


def shown_name(model: str, name: str) -> str:
    """A model's name in its figures: of a run's stage RUN: STAGE, as `judge board` has it; of one
    from the hub ORG/NAME.
    """
    from rayward.data.model_files.hub_models import model_title

    if not is_folder(model):
        return name
    path = Path(model).resolve()
    run = next((folder for folder in path.parents if (folder / "config.yaml").is_file()), None)
    if path.name != "model" or run is None:
        return model_title(path)
    return f"{run.name}: {path.parent.name}"


def _chat_template(folder: str, name: str) -> str:
    """A template as Jinja: the tokenizer's own, or one of Rayward's."""
    from rayward.data.templates.jinja import jinja
    from rayward.data.templates.known_ids import assert_known_ids
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import load_tokenizer

    template, tokenizer = find(name), load_tokenizer(folder)
    if not template.is_tokenizers:
        assert_known_ids(template, tokenizer)
        return jinja(template, tokenizer)
    if not tokenizer.chat_template:
        raise ValueError(f"{folder}: its tokenizer has no chat template; --template names one")
    return str(tokenizer.get_chat_template())


@contextmanager
def server(options: argparse.Namespace, model: Asked, likelihoods: bool) -> Iterator[Any]:
    """(base URL, context in tokens) of the model's server, as long as it is used.

    `likelihoods`: whether tasks need the log-probabilities of prompts. ValueError: it cannot.
    """
    from rayward.cluster.serve.vllm_server import served

    if is_folder(options.model):
        assert model.context_tokens is not None
        with served(
            options.model, options.context_tokens, options.start_timeout, options.vllm
        ) as url:
            yield url, model.context_tokens
        return
    url = re.split(AT_URL, options.model)[1].rstrip("/")
    assert model.context_tokens is not None
    if likelihoods:
        with httpx.Client(headers=_headers(options), timeout=options.timeout) as client:
            _probe(client, url, model.name)
    yield url, model.context_tokens


def _context(client: httpx.Client, url: str, name: str, most: int) -> int:
    """The context that the endpoint says of a model, at most `most`; that where it says none."""
    try:
        answer = client.get(f"{url}/models")
        listed = answer.json()["data"] if answer.status_code == 200 else []
    except httpx.HTTPError as error:
        raise ConnectionError(f"{url} cannot be reached: {error or type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        return most
    of_model = [each for each in listed if isinstance(each, dict) and each.get("id") == name]
    if listed and not of_model:
        known = ", ".join(str(each.get("id")) for each in listed if isinstance(each, dict))
        raise ValueError(f"{url} has no model {name}; it has {known}")
    said = of_model[0].get("max_model_len") if of_model else None
    return min(most, said) if isinstance(said, int) else most


def _probe(client: httpx.Client, url: str, name: str) -> None:
    """ValueError: the endpoint gives no log-probabilities of a prompt of token ids."""
    body = {"model": name, "prompt": PROBE_IDS, "max_tokens": 1, "temperature": 0}
    answer = client.post(f"{url}/completions", json=body | {"logprobs": 1, "echo": True})
    said = answer.text[:300]
    if answer.status_code == 200:
        try:
            logprobs = answer.json()["choices"][0]["logprobs"]
            if len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == 4:
                return
        except (ValueError, KeyError, IndexError, TypeError):
            pass
    raise ValueError(
        f"{url}/completions gives no log-probabilities of a prompt (token ids, with echo and "
        f"logprobs), which MMLU, ARC, TruthfulQA and HellaSwag need; --tasks gsm8k,ifeval does "
        f"without. Status {answer.status_code}: {said}"
    )
