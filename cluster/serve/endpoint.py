"""What the chat endpoint is started with: the arguments of the Serve application."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from rayward.configs.plan import serving
from rayward.configs.schema import Config
from rayward.configs.sections.base import Count, Section
from rayward.configs.stages import MODELS


class Endpoint(Section):
    """Arguments of `rayward.cluster.serve:app`, as a config of Serve or `serve run` gives them."""

    model: Annotated[str, Field(min_length=1)]
    """Folder of a model, or of a run, whose stage publish has chosen one."""
    model_id: str = "rayward"
    """Name of the model in the API."""
    dtype: str = "bfloat16"
    """Dtype of the weights, as vLLM calls it."""
    context_tokens: Count = 2048
    """Longest conversation with its answer, in tokens."""
    replicas: Count = 1
    """Copies of the model."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a replica; 0 runs it on the CPU."""
    gpu_memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Share of its GPUs' memory that a replica takes."""
    kv_cache_gib: Count = 1
    """Memory of the KV cache of a replica on the CPU, in GiB."""
    threads: Count = 1
    """Compute threads of a replica on the CPU."""
    trust_remote_code: bool = False
    """Whether code in the model's folder may run."""

    @classmethod
    def of(cls, config: Config, model: str) -> Endpoint:
        """What a run's config says of serving `model`."""
        role = serving(config)
        return cls(
            model=model,
            model_id=config.publish.model_id,
            dtype=config.model.dtype,
            context_tokens=config.model.context_tokens,
            replicas=config.publish.replicas,
            gpus=int(role.gpus),
            gpu_memory_fraction=config.rollout.gpu_memory_fraction,
            kv_cache_gib=config.rollout.kv_cache_gib,
            threads=role.compute_threads,
            trust_remote_code=config.model.trust_remote_code,
        )

    @property
    def folder(self) -> str:
        """The model's folder. ValueError where `model` is neither that nor a published run's."""
        given = Path(self.model)
        manifest = given / "publish" / "manifest.json"
        if (given / "config.json").is_file():
            return str(given)
        if not manifest.is_file():
            raise ValueError(
                f"{given} holds no model (no config.json) and is no run that has published one "
                "(no publish/manifest.json); the argument model names one of the two"
            )
        name = json.loads(manifest.read_text(encoding="utf-8"))["metrics"]["model"]
        # A model that the run was given lies in publish/model, with the run's tokenizer.
        return str(given / MODELS.get(name, "publish") / "model")
