"""Models that are asked: rules behind a real HTTP server, and a random Llama for vLLM's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.schema import Config
from tests.pipelines.judge_server import JudgeServer, Rule

ROOT = Path(__file__).parents[2]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JudgeServer]]:
    """`serve(rule)`: a server that answers by it until the test's end."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started: list[JudgeServer] = []

    def start(rule: Rule, wait_s: float = 0.0, together: int = 0) -> JudgeServer:
        started.append(JudgeServer(rule, wait_s, together))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="module")
def vllm_environment() -> Iterator[None]:
    """For servers that commands start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


@pytest.fixture(scope="module")
def random_llama(
    vllm_environment: None,
    tiny_models: Any,
    tiny_config: Callable[..., Config],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """`random_llama(tokens)`: the folder `tiny` of one that takes so many; with `bos` its tokenizer
    puts BOS before every text, as Llama's do. vLLM serves it in little memory.
    """
    from tokenizers.processors import TemplateProcessing

    from rayward.actors.models.load import build_from_scratch, save_model

    def make(context: int, bos: bool = False) -> Path:
        shape, tokenizer = tiny_config().model.scratch, copy.deepcopy(tiny_models.tokenizer)
        tokenizer.model_max_length = context
        if bos:
            first = (tokenizer.bos_token, tokenizer.bos_token_id)
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{first[0]} $A", special_tokens=[first]
            )
        assert shape is not None
        lm = build_from_scratch(shape, tokenizer, context, seed=3)
        path = tmp_path_factory.mktemp("served") / "tiny"
        save_model(lm, lm.state_dict(), tokenizer, path)
        return path

    return make
