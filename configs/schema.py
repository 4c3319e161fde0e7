"""Every setting of a run: a frozen pydantic class a section, a sentence with its unit a field.

The classes hold values and bounds, those of large sections in files of their own beside this one;
`rayward.configs.load` reads YAML into them and explains mistakes, `rayward.configs.needs` says what
the stages of a config want, `rayward.configs.plan` derives the batch arithmetic. Batch sizes are
three numbers only (prompts per iteration, samples per prompt, samples per optimizer step);
micro-batches follow from a token budget.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from rayward.configs.sections.base import Count, Positive, Section, StageSection
from rayward.configs.sections.checkpoint import Checkpoint
from rayward.configs.sections.data import Data
from rayward.configs.sections.kube import Kube
from rayward.configs.sections.machines import Cluster, Resources
from rayward.configs.sections.model import Model
from rayward.configs.sections.rl import Rl
from rayward.configs.sections.scoring import Scoring
from rayward.configs.sections.suites import EvaluationSuite
from rayward.configs.sections.training import Dpo, Reward, Sft, Supervised


class Rollout(Section):
    """Generation with vLLM."""

    max_new_tokens: Count = 512
    """Longest answer, in tokens."""
    temperature: Positive = 1.0
    """Sampling temperature; the trainer divides its logits by the same number."""
    kv_cache_gib: Count = 1
    """Memory of the KV cache of an engine on the CPU, in GiB."""
    gpu_memory_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """Share of its GPU's memory that an engine takes."""
    max_sequences: Count = 256
    """Requests an engine works on at once."""
    batch_invariant: bool = False
    """On GPUs, slower kernels whose bits do not depend on what else is in a batch; on the CPU it
    holds anyway.
    """
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """How weights reach the engines; auto takes nccl where policy and engine own GPUs, else Ray's
    object store.
    """

    @model_validator(mode="before")
    @classmethod
    def _draws_from_the_whole_distribution(cls, values: Any) -> Any:
        cut = {
            "top_p",
            "top_k",
            "min_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
        }
        if isinstance(values, dict) and (named := sorted(cut & set(values))):
            raise ValueError(
                f"rollout.{named[0]} is refused: the log-probs of answers drawn with it are not "
                "those of the policy that is trained, so its gradients would be wrong; only "
                "rollout.temperature shapes rollouts"
            )
        return values


class Sample(StageSection):
    """Rejection sampling: draw, score, keep the best, fine-tune on it."""

    prompts: Count = 1000
    """Training prompts to answer."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Answers drawn per prompt."""
    temperature: Positive = 1.0
    """Sampling temperature of the draws."""
    training: Supervised = Supervised(epochs=2)
    """Fine-tuning of the SFT model on the best answers."""


class Evaluate(StageSection):
    """Win rate, KL and length on held-out prompts."""

    judge: Annotated[str, Field(min_length=1)] = "reward_model"
    """Judge: gold (the toy world's), reward_model (a second one of stage reward), scoring (the
    reward), or a folder.
    """
    models: dict[str, str] = Field({})
    """Further models that answer too: a name and the folder of each; they have the run's
    tokenizer.
    """
    labelled: str | None = None
    """File of labelled pairs or rankings (as `rayward judge agreement` takes) to hold the judge
    against, relative to data.root; null takes the held-out rankings of prepare.
    """
    labelled_pairs: Annotated[int, Field(ge=0)] = 200
    """Labelled pairs, drawn by the seed, that the judge is measured on before it judges; 0 leaves
    that out.
    """
    against: str | None = None
    """Model that the others are compared with, by name; null is sft, or start (model.path) where no
    sft is made.
    """
    prompts: Count = 256
    """Held-out prompts to answer; of fewer than 16 a win rate says little."""
    temperature: Positive = 1.0
    """Sampling temperature of the answers."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10000
    """Resamples behind the 95 % intervals."""
    suites: tuple[EvaluationSuite, ...] = ()
    """Suites that the models answer too, each a part of its own."""

    @field_validator("suites")
    @classmethod
    def _each_once(cls, suites: tuple[EvaluationSuite, ...]) -> tuple[EvaluationSuite, ...]:
        names = [suite.name for suite in suites]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two suites have the name {twice[0]!r}")
        return suites


class Publish(StageSection):
    """The chat endpoint on Ray Serve."""

    model: Annotated[str, Field(min_length=1)] = "best"
    """Model to serve, by name; best is evaluate's winner, or without evaluate the one that the last
    stage made.
    """
    model_id: str = "rayward"
    """Name of the model in the API."""
    host: str | None = None
    """Address of the head node to listen on; null takes 127.0.0.1 on one host, and on a cluster of
    several the address by which they know it. 0.0.0.0 opens the model to every network, without a
    password.
    """
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """HTTP port; 0 takes a free one."""
    replicas: Count = 1
    """Copies of the model behind the endpoint."""
    start_timeout_s: Positive = 300
    """Longest wait for the endpoint to answer, in seconds."""


STAGE_SECTIONS = ("sft", "reward", "sample", "dpo", "rl", "evaluate", "publish")


class Config(Section):
    """A whole run."""

    name: str = "run"
    """Name of the run; its folder is runs/NAME unless --run says otherwise."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of everything random."""
    model: Model
    """The base model."""
    data: Data
    """Where rows come from."""
    cluster: Cluster = Cluster()
    """The Ray cluster and waiting times."""
    resources: Resources = Resources()
    """Processes and what each gets."""
    checkpoint: Checkpoint = Checkpoint()
    """What a training goes on from."""
    kube: Kube = Kube()
    """Pods on Kubernetes (`rayward kube render`)."""
    sft: Sft = Sft()
    """Supervised fine-tuning."""
    reward: Reward = Reward()
    """Reward model."""
    scoring: Scoring = Scoring()
    """The reward of answers."""
    rollout: Rollout = Rollout()
    """Generation with vLLM."""
    sample: Sample = Sample()
    """Rejection sampling."""
    dpo: Dpo = Dpo.null()
    """DPO; {} takes its defaults, null (as for every stage) leaves it out."""
    rl: Rl = Rl()
    """Online RL."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""
    publish: Publish = Publish()
    """The chat endpoint."""

    @field_validator(*STAGE_SECTIONS, mode="before")
    @classmethod
    def _null_leaves_out(cls, value: Any, info: ValidationInfo) -> Any:
        section: type[StageSection] = cls.model_fields[str(info.field_name)].annotation  # type: ignore[assignment]
        return section.null() if value is None else value

    @field_serializer(*STAGE_SECTIONS, mode="wrap")
    def _left_out_is_null(self, value: StageSection, plain: SerializerFunctionWrapHandler) -> Any:
        return None if value.left_out else plain(value)
