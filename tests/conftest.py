"""What tests of all floors share: a config of toy size, a tokenizer and two models of it, and one
local Ray.

Nothing here stands in for anything: small models, real parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from rayward.configs.checks import checked
from rayward.configs.schema import Config

# The same examples in every run: a failure is one of the change, and not of the draw.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")

TEMPLATE = "openchat_3.5"
# vLLM's attention on the CPU takes heads of 32 and more.
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 2, "vocab_size": 300}
OPTIMIZER = {"micro_batch_tokens": 256, "learning_rate": 1e-3}
SMALL: dict[str, Any] = {
    "name": "tiny",
    "model": {"scratch": SHAPE, "template": TEMPLATE, "context_tokens": 448, "dtype": "float32"},
    "data": {
        "toyworld": {
            "demonstrations": 48,
            "rankings": 24,
            "answers_per_ranking": 3,
            "prompts": 24,
            "evaluation_prompts": 16,
        }
    },
    "cluster": {"object_store_gib": 0.25, "start_timeout_s": 240, "call_timeout_s": 120},
    "resources": {
        role: {"cpus": 0.1}
        for role in ("train", "policy", "critic", "reference", "reward", "rollout")
    },
    "sft": {"epochs": 1, "samples_per_step": 16, "optimizer": OPTIMIZER},
    "reward": {"rankings_per_step": 8, "optimizer": OPTIMIZER},
    "rollout": {"max_new_tokens": 24, "max_sequences": 64},
    "sample": {
        "prompts": 8,
        "samples_per_prompt": 2,
        "training": {"epochs": 1, "samples_per_step": 8, "optimizer": OPTIMIZER},
    },
    "rl": {
        "iterations": 2,
        "prompts_per_iteration": 8,
        "samples_per_prompt": 2,
        "samples_per_step": 8,
        "epochs": 1,
        "critic_learning_rate": 1e-3,
        "ppo": {"learning_rate": 1e-3},
        "apa": {"learning_rate": 1e-3},
        "optimizer": {"micro_batch_tokens": 256, "schedule": "constant", "warmup_fraction": 0.0},
    },
    "evaluate": {"judge": "gold", "prompts": 16, "bootstrap_samples": 200},
    "publish": {"port": 0},
}


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


RAY_FIXTURES = {"local_ray", "rayward", "road"}
# Files whose tests start Ray or vLLM, in this process or in a command's.
RAY_FILES = {
    "test_chaos.py",
    "test_data_clean.py",
    "test_docs.py",
    "test_doctor.py",
    "test_dpo.py",
    "test_elastic.py",
    "test_engine.py",
    "test_evaluate.py",
    "test_extra_prompts.py",
    "test_feedback_vllm.py",
    "test_head.py",
    "test_hosts.py",
    "test_house.py",
    "test_interface.py",
    "test_jobs.py",
    "test_judge_scorers.py",
    "test_judge_tasks.py",
    "test_judge_vllm.py",
    "test_keeper.py",
    "test_kube_job.py",
    "test_notebook.py",
    "test_parts.py",
    "test_policy.py",
    "test_proof.py",
    "test_pulse.py",
    "test_ranked.py",
    "test_renewable.py",
    "test_resume.py",
    "test_retries.py",
    "test_reward_eval.py",
    "test_reward_serve.py",
    "test_rl.py",
    "test_road.py",
    "test_rollout.py",
    "test_sample.py",
    "test_scoring.py",
    "test_sequence_parallel.py",
    "test_serve_app.py",
    "test_slots.py",
    "test_slurm.py",
    "test_sockets.py",
    "test_training.py",
    "test_transfer_models.py",
    "test_weights.py",
    "test_writing.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Ray come first: they take longest."""
    for item in items:
        starts_ray = RAY_FIXTURES & {*getattr(item, "fixturenames", ())}
        if starts_ray and item.path.name not in RAY_FILES:
            raise pytest.UsageError(f"{item.path.name} starts Ray: add it to RAY_FILES")
    items.sort(key=lambda item: item.path.name not in RAY_FILES)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests by file, but for those with Ray: those of pipelines for one process, all others for
    another, each with one Ray. What needs none comes then, on every core: beside it Ray's
    processes, which are nice, would stand still.

    Not by marks (loadgroup), since pytest 9.2 has no place for the groups that pytest-xdist 3.8
    writes.
    """
    from xdist.scheduler import LoadScopeScheduling

    class RayTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0])
            if file.name not in RAY_FILES:
                return str(file)
            return "pipelines with Ray" if "pipelines" in file.parts else "others with Ray"

    return RayTogether(config, log)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Config]:
    """`tiny_config(rl={"epochs": 2})`: a whole run of toy size in fp32; sections given are merged
    over it.
    """
    return lambda **overrides: checked(Config.model_validate(_merge(SMALL, overrides)))


@dataclass(frozen=True)
class TinyModels:
    """Hugging Face folders of a language model and of a reward model made from it, and their
    tokenizer.
    """

    policy: str
    reward: str
    tokenizer: Any


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> TinyModels:
    """Random models in which every weight matters: the norms are not 1 either."""
    import torch

    from rayward.actors.models.load import build_from_scratch, load_scalar, save_model
    from rayward.data.templates.jinja import jinja
    from rayward.data.templates.template import TEMPLATES
    from rayward.data.templates.tokenizer import train_tokenizer
    from rayward.data.toy.toyworld import demonstrations

    config, template = tiny_config(), TEMPLATES[TEMPLATE]
    texts = [turn.content for row in demonstrations(200, seed=0) for turn in row.turns]
    tokenizer = train_tokenizer(
        texts, SHAPE["vocab_size"], template.special_tokens, config.model.context_tokens
    )
    tokenizer.chat_template = jinja(template)
    assert config.model.scratch is not None
    lm = build_from_scratch(config.model.scratch, tokenizer, config.model.context_tokens, seed=1)
    with torch.no_grad():
        for weight in lm.parameters():
            if weight.ndim == 1:
                weight.add_(0.2 * torch.randn(weight.shape))
    folder: Path = tmp_path_factory.mktemp("models")
    save_model(lm, lm.state_dict(), tokenizer, folder / "policy")
    scalar = load_scalar(str(folder / "policy"), "float32", seed=2).classifier
    save_model(scalar, scalar.state_dict(), tokenizer, folder / "reward")
    return TinyModels(str(folder / "policy"), str(folder / "reward"), tokenizer)


@pytest.fixture(scope="session")
def local_ray(tiny_config: Callable[..., Config]) -> Iterator[None]:
    """The one Ray of the test session, started as a run starts it."""
    import ray

    from rayward.cluster.connect import connect

    connect(tiny_config().cluster)
    yield
    ray.shutdown()
