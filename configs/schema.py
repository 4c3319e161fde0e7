"""Every setting of a run: one frozen pydantic class a section, one sentence with its unit under each field.

The classes hold values and bounds, those of large sections in files of their own beside this one; `configs.load` reads
YAML into them and explains mistakes, `configs.plan` derives the batch arithmetic. Batch sizes are three numbers only
(prompts per iteration, samples per prompt, samples per optimizer step); micro-batches follow from a token budget.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from configs.data import Data
from configs.machines import Cluster, Resources, Role
from configs.model import CPU_HEAD_SIZES, Model
from configs.rl import WITH_CRITIC, AlgorithmName, Rl
from configs.scoring import Scoring
from configs.section import Count, Positive, Section
from configs.training import Dpo, Reward, Sft, Supervised, Updates


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
    weight_transfer: Literal["auto", "object_store", "nccl", "ipc"] = "auto"
    """How weights reach the engines; auto takes nccl where policy and engine own GPUs, else Ray's object store."""

    @model_validator(mode="before")
    @classmethod
    def _draws_from_the_whole_distribution(cls, values: Any) -> Any:
        cut = {"top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
        if isinstance(values, dict) and (named := sorted(cut & set(values))):
            raise ValueError(
                f"rollout.{named[0]} is refused: the log-probs of answers drawn with it are not those of the policy "
                "that is trained, so its gradients would be wrong; only rollout.temperature shapes rollouts"
            )
        return values


class Sample(Section):
    """Rejection sampling: draw, score, keep the best, fine-tune on it."""

    prompts: Count = 1000
    """Training prompts to answer."""
    samples_per_prompt: Annotated[int, Field(ge=2)] = 8
    """Answers drawn per prompt."""
    temperature: Positive = 1.0
    """Sampling temperature of the draws."""
    training: Supervised = Supervised(epochs=2)
    """Fine-tuning of the SFT model on the best answers."""


class Evaluate(Section):
    """Win rate, KL and length on held-out prompts."""

    judge: Literal["gold", "reward_model"] = "reward_model"
    """The toy world's gold judge, or a second reward model trained on preference rows that the first never saw."""
    prompts: Annotated[int, Field(ge=16)] = 256
    """Held-out prompts to answer."""
    temperature: Positive = 1.0
    """Sampling temperature of the answers."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 10000
    """Resamples behind the 95 % intervals."""


class Publish(Section):
    """The chat endpoint on Ray Serve."""

    model: Literal["best", "sft", "rejection", "dpo"] | AlgorithmName = "best"
    """Model to serve; best is the one with the highest win rate in evaluate."""
    model_id: str = "rayward"
    """Name of the model in the API."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 opens the model to the network, without a password."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """HTTP port; 0 takes a free one."""
    replicas: Count = 1
    """Copies of the model behind the endpoint."""
    start_timeout_s: Positive = 300
    """Longest wait for the endpoint to answer, in seconds."""


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
    dpo: Dpo | None = None
    """DPO; null leaves it out, {} takes its defaults."""
    rl: Rl = Rl()
    """Online RL."""
    evaluate: Evaluate = Evaluate()
    """Evaluation."""
    publish: Publish = Publish()
    """The chat endpoint."""

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        samples = self.rl.prompts_per_iteration * self.rl.samples_per_prompt
        if samples % self.rl.samples_per_step:
            divisors = [n for n in range(1, samples + 1) if samples % n == 0]
            near = min(divisors, key=lambda n: abs(n - self.rl.samples_per_step))
            raise ValueError(
                f"rl.samples_per_step {self.rl.samples_per_step} does not divide rl.prompts_per_iteration x "
                f"rl.samples_per_prompt = {samples}; nearest that does: {near}"
            )
        if self.rl.mode == "colocate" and not (self.resources.rollout.gpus and self.resources.policy.gpus):
            raise ValueError(
                "rl.mode colocate lets engines and trainers take turns in the memory of the same GPUs, and here "
                f"resources.rollout.gpus is {self.resources.rollout.gpus:g}, resources.policy.gpus "
                f"{self.resources.policy.gpus:g}; use sync or one_step_off"
            )
        if self.rl.mode == "colocate" and not self.rl.optimizer.zero_stage:
            raise ValueError("rl.mode colocate moves optimizer states to the host, which needs ZeRO: zero_stage 1 to 3")
        if self.rollout.max_new_tokens >= self.model.context_tokens:
            raise ValueError(
                f"rollout.max_new_tokens {self.rollout.max_new_tokens} leaves no room for a prompt in "
                f"model.context_tokens {self.model.context_tokens}"
            )
        if self.evaluate.judge == "gold" and self.data.toyworld is None:
            raise ValueError("evaluate.judge gold exists only in data.toyworld; use reward_model with your own data")
        if self.data.toyworld and self.data.toyworld.evaluation_prompts < self.evaluate.prompts:
            raise ValueError(
                f"evaluate.prompts {self.evaluate.prompts} is more than "
                f"data.toyworld.evaluation_prompts {self.data.toyworld.evaluation_prompts}"
            )
        if self.rl.critic_warmup_iterations >= self.rl.iterations:
            raise ValueError(
                f"rl.critic_warmup_iterations {self.rl.critic_warmup_iterations} leaves no iteration of "
                f"rl.iterations {self.rl.iterations} that trains the policy"
            )
        resources = self.resources
        optimizers: list[tuple[str, Updates, str, Role]] = [
            ("sft", self.sft.optimizer, "train", resources.train),
            ("reward", self.reward.optimizer, "train", resources.train),
            *([("dpo", self.dpo.optimizer, "train", resources.train)] if self.dpo else []),
            ("sample.training", self.sample.training.optimizer, "train", resources.train),
            ("rl", self.rl.optimizer, "policy", resources.policy),
            ("rl", self.rl.optimizer, "critic", resources.critic),
        ]
        for name, optimizer, role_name, role in optimizers:
            if optimizer.offload and (role.gpus == 0 or optimizer.zero_stage < 2):
                raise ValueError(
                    f"{name}.optimizer.offload works with GPUs and zero_stage 2 or 3 only; here "
                    f"resources.{role_name}.gpus is {role.gpus:g}, zero_stage {optimizer.zero_stage}"
                )
        sharing = self.rl.sequence_parallel
        for role_name in ("policy", *(["critic"] if set(self.rl.algorithms) & set(WITH_CRITIC) else [])):
            if (workers := getattr(resources, role_name).workers) % sharing:
                raise ValueError(
                    f"rl.sequence_parallel {sharing} does not divide resources.{role_name}.workers {workers}; "
                    f"nearest that does: {sharing * max(1, round(workers / sharing))} workers"
                )
        for role_name in ("train", "policy", "critic", "reference", "reward"):
            if (gpus := getattr(resources, role_name).gpus) > 1:
                raise ValueError(
                    f"resources.{role_name}.gpus is {gpus:g}, but a process of this role uses one GPU at most; "
                    f"give it more workers"
                )
        if resources.rollout.gpus > 1 and resources.rollout.gpus % 1:
            raise ValueError(f"resources.rollout.gpus is {resources.rollout.gpus:g}; above 1 it must be whole")
        for role_name in ("policy", "reference"):
            gpus = min(getattr(resources, role_name).gpus, resources.rollout.gpus)
            if self.rollout.weight_transfer in ("nccl", "ipc") and not gpus:
                raise ValueError(
                    f"rollout.weight_transfer {self.rollout.weight_transfer} needs GPUs on both sides; "
                    f"resources.{role_name}.gpus is {getattr(resources, role_name).gpus:g}, "
                    f"resources.rollout.gpus {resources.rollout.gpus:g}; use object_store"
                )
        trained = self.publish.model in get_args(AlgorithmName)
        if trained and self.publish.model not in self.rl.algorithms:
            raise ValueError(
                f"publish.model is {self.publish.model}, which rl.algorithms ({', '.join(self.rl.algorithms)}) does "
                "not train"
            )
        if self.publish.model == "dpo" and self.dpo is None:
            raise ValueError("publish.model is dpo, which this config does not train; give a dpo section, at least {}")
        scratch = self.model.scratch
        if scratch and not resources.rollout.gpus and scratch.hidden_size // scratch.heads not in CPU_HEAD_SIZES:
            raise ValueError(
                f"model.scratch has heads of hidden_size / heads = {scratch.hidden_size // scratch.heads}; vLLM on the "
                f"CPU takes {', '.join(map(str, CPU_HEAD_SIZES))}"
            )
        return self
