"""Every setting of a run: one frozen pydantic class a section, one sentence with its unit under each field.

The classes hold values and bounds; `configs.load` reads YAML into them and explains mistakes, `configs.plan` derives
the batch arithmetic. Batch sizes are three numbers only (prompts per iteration, samples per prompt, samples per
optimizer step); micro-batches follow from a token budget.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
AlgorithmName = Literal["ppo", "rloo", "grpo", "reinforce", "apa", "awr"]
WITH_CRITIC = ("ppo", "apa", "awr")
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that vLLM's attention on the CPU has (vllm/v1/attention/backends/cpu_attn.py, 0.29)."""


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _given_in_part(cls, values: Any) -> Any:
        """A section given in part keeps the defaults that this place gives it, not those of its class."""
        if not isinstance(values, dict):
            return values
        filled = dict(values)
        for name, field in cls.model_fields.items():
            if isinstance(field.default, Section) and isinstance(values.get(name), dict):
                filled[name] = {**field.default.model_dump(exclude_unset=True), **values[name]}
        return filled


class Scratch(Section):
    """A Llama-architecture model with random weights, for runs that start from nothing."""

    hidden_size: Count = 160
    """Width of the residual stream, in units."""
    intermediate_size: Count = 432
    """Width of the feed-forward layer, in units."""
    layers: Count = 4
    """Number of decoder layers."""
    heads: Count = 5
    """Number of attention heads; hidden_size must be a multiple of it."""
    vocab_size: Annotated[int, Field(ge=300)] = 512
    """Entries of the byte-level BPE vocabulary trained on the run's data."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Scratch:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}; "
                f"nearest that is: {self.heads * max(1, round(self.hidden_size / self.heads))}"
            )
        return self


class Model(Section):
    """The base model, its chat template and its numbers."""

    path: str | None = None
    """Hugging Face folder or hub name of the base model; null builds `scratch`."""
    scratch: Scratch | None = None
    """Shape of a model with random weights; only with path null."""
    template: str = "openchat_3.5"
    """Chat template, by its name in data/template_table.py; tokenizer is the one that the model brings."""
    context_tokens: Annotated[int, Field(ge=16)] = 2048
    """Longest prompt plus answer, in tokens; longer training rows are cut, longer prompts dropped and counted."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of weights and activations in training and rollouts."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.path is None) == (self.scratch is None):
            raise ValueError(
                "give exactly one of model.path (a folder to start from) and model.scratch (random weights)"
            )
        if self.scratch and self.template == "tokenizer":
            raise ValueError("model.template tokenizer takes the chat template of model.path; model.scratch has none")
        return self


class Source(Section):
    """One file or folder of rows."""

    path: str
    """File or folder, relative to data.root, or hf:NAME[:CONFIG][:SPLIT]."""
    format: str = "auto"
    """Format name from data/formats.py, or auto to detect it from the first row."""
    limit: Count | None = None
    """Records to take at most; null takes all."""


class ToyWorld(Section):
    """The generated instruction world of the quickstart (data/toyworld.py)."""

    demonstrations: Count = 6000
    """Conversations for SFT."""
    rankings: Count = 2000
    """Prompts with K ranked answers for the reward model, of which a part is held out."""
    answers_per_ranking: Annotated[int, Field(ge=2, le=10)] = 7
    """Answers ranked per prompt (K)."""
    label_noise: Annotated[float, Field(ge=0, le=0.4)] = 0.1
    """Share of answer pairs whose order in the rankings contradicts the gold judge."""
    prompts: Count = 2000
    """Training prompts for rejection sampling and RL."""
    evaluation_prompts: Count = 320
    """Held-out prompts for evaluation, disjoint from every other set."""


class Data(Section):
    """Where rows come from. Either `toyworld` or lists of sources."""

    root: str = "."
    """Folder that relative source paths start from."""
    toyworld: ToyWorld | None = None
    """Generate the quickstart world instead of reading files."""
    conversations: tuple[Source, ...] = ()
    """Chats for SFT."""
    preferences: tuple[Source, ...] = ()
    """Rankings or pairs for the reward model."""
    prompts: tuple[Source, ...] = ()
    """Prompts for rejection sampling and RL; conversations and rankings give theirs."""
    evaluation_prompts: tuple[Source, ...] = ()
    """Held-out prompts for evaluation; a training row that also asks one of them is dropped and counted."""
    heldout_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the preference rows kept for measuring the reward model, chosen by a hash of the prompt."""

    @model_validator(mode="after")
    def _one_world(self) -> Data:
        lists = ("conversations", "preferences", "prompts", "evaluation_prompts")
        given = [name for name in lists if getattr(self, name)]
        if self.toyworld and given:
            raise ValueError(f"data.toyworld makes all data; remove data.{given[0]} or data.toyworld")
        if not self.toyworld and len(given) < len(lists):
            missing = [name for name in lists if name not in given]
            raise ValueError(f"data.{missing[0]} lists no source; every list needs at least one, or use data.toyworld")
        return self


class Role(Section):
    """Processes of one role and what each of them gets."""

    workers: Count = 1
    """Processes of this role."""
    cpus: Annotated[float, Field(ge=0)] = 0.3
    """Ray CPUs reserved for each process; a share is enough where roles take turns."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs for each process; 0 runs it on the CPU."""
    threads: Count = 1
    """Compute threads of each process on the CPU."""


class Resources(Section):
    """Who runs where in sampling, RL and evaluation. SFT and reward training use `train`."""

    train: Role = Role(threads=2)
    """Workers of SFT and reward-model training, started by Ray Train."""
    policy: Role = Role()
    """DeepSpeed ranks that train the policy."""
    critic: Role = Role()
    """DeepSpeed ranks that train the critic."""
    reference: Role = Role()
    """Processes that hold the frozen SFT model."""
    reward: Role = Role()
    """Processes that hold the reward model."""
    rollout: Role = Role(threads=2)
    """vLLM engines."""


class Cluster(Section):
    """The Ray cluster and waiting times."""

    address: str | None = None
    """Ray address to join, `auto` for this machine's; null starts a local one unless RAY_ADDRESS is set."""
    object_store_gib: Positive = 1.0
    """Shared memory of a locally started Ray, in GiB."""
    start_timeout_s: Positive = 300
    """Longest wait for the actors of a stage to start, in seconds."""
    call_timeout_s: Positive = 600
    """Longest wait for one call to an actor, in seconds."""


class Updates(Section):
    """AdamW under DeepSpeed: everything but the learning rate."""

    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Shape of the learning rate after the warm-up, over optimizer steps."""
    warmup_fraction: Fraction = 0.03
    """Share of the optimizer steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW weight decay, on matrices only."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """AdamW decay rates of the two moments."""
    eps: Positive = 1e-8
    """AdamW epsilon."""
    max_grad_norm: Positive = 1.0
    """Gradient norm above which gradients are scaled down."""
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """DeepSpeed ZeRO stage: what is split over ranks (0 nothing, 1 optimizer, 2 gradients, 3 weights)."""
    offload: bool = False
    """Keep ZeRO-2 and 3 optimizer state in host memory; only on GPUs."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    micro_batch_tokens: Count = 8192
    """Tokens of one forward pass at most, padding included; changes speed and memory, never the result."""


class Optimizer(Updates):
    """AdamW under DeepSpeed."""

    learning_rate: Positive = 2e-5
    """Peak learning rate."""


class Supervised(Section):
    """Supervised fine-tuning."""

    epochs: Count = 3
    """Passes over the rows."""
    samples_per_step: Count = 128
    """Rows of one optimizer step."""
    packing: bool | None = None
    """Rows back to back instead of padded; null: on the CPU (on a GPU it needs flash attention to be fast)."""
    optimizer: Optimizer = Optimizer()
    """How the weights are updated."""


EXPERTS = ("Model: GPT-4", "gpt-4", "gpt4", "GPT4", "GPT4 Correct", "expert")


class Quality(Section):
    """C-RLFT: classes of answers with words of their own in the prompt and weights of their own in the loss."""

    conditioning: bool = False
    """Name the class of an answer in the role prefixes; RL and serving use the template's own words, the expert's."""
    weighting: bool = False
    """Multiply the loss of an answer by the weight of its class; own weights other than 0 and 1 are kept."""
    classes: dict[str, str] = dict.fromkeys(EXPERTS, "expert")
    """Class of each label of a conversation (`quality` in our records, `model` in ShareGPT); one of them is expert."""
    other: Annotated[str, Field(min_length=1)] = "sub_optimal"
    """Class of conversations with another label or none."""
    conditions: dict[str, Annotated[str, Field(min_length=1)]] = {"sub_optimal": "GPT3"}
    """Words of each class in the role prefixes, without the expert's, which are the template's."""
    weights: dict[str, Positive] = {"expert": 1.0, "sub_optimal": 0.1}
    """Weight of each class in the loss, where it is not 1; only their ratio matters."""

    @field_validator("classes", "conditions", "weights", mode="before")
    @classmethod
    def _given_over_defaults(cls, value: Any, info: ValidationInfo) -> Any:
        """Tables given in part keep the other entries of the default, as sections do."""
        default = cls.model_fields[str(info.field_name)].default
        return {**default, **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _every_class_is_known(self) -> Quality:
        names = {*self.classes.values(), self.other}
        if "expert" not in names:
            raise ValueError("quality.classes has no label of the class expert, as which the model is asked")
        if "expert" in self.conditions:
            raise ValueError(
                "quality.conditions names the expert, whose words are the template's; choose model.template instead"
            )
        for field, needed in (("conditions", names - {"expert"}), ("weights", names)):
            given, default = set(getattr(self, field)), set(Quality.model_fields[field].default)
            if odd := sorted(needed - given) or sorted(given - needed - default):
                told = "has nothing for the class" if odd[0] in needed else "names an unknown class"
                raise ValueError(f"quality.{field} {told} {odd[0]!r}; the classes are {', '.join(sorted(names))}")
        return self


class Sft(Supervised):
    """Supervised fine-tuning on the conversations."""

    long_conversations: Literal["cut", "segment"] = "cut"
    """Cut a conversation at model.context_tokens, or divide it there into segments of whole questions and answers."""
    quality: Quality = Quality()
    """Answers of unequal quality."""


class Preferences(Section):
    """Learning from rankings: what the reward model and DPO share."""

    epochs: Count = 1
    """Passes over the rankings; more than one overfits on most data."""
    rankings_per_step: Count = 32
    """Rankings of one optimizer step."""
    loss: Literal["plackett_luce", "pairs"] = "plackett_luce"
    """Likelihood of the whole ranking, or the mean Bradley-Terry loss of its pairs; equal for two answers."""
    ties: Literal["seed", "average"] = "seed"
    """Tied answers: in an order drawn by the seed, or the mean likelihood of all orders."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """With pairs: lead that a better answer should have, for each unit of a pair's margin or of a rank."""
    optimizer: Optimizer = Optimizer()
    """How the weights are updated."""

    @model_validator(mode="after")
    def _margin_is_of_pairs(self) -> Preferences:
        if self.margin and self.loss != "pairs":
            name = type(self).__name__.lower()
            raise ValueError(f"{name}.margin {self.margin:g} has no effect on {name}.loss {self.loss}; use loss pairs")
        return self


class Reward(Preferences):
    """Reward-model training."""

    zero_sum: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of a ranking's scores, which fixes the constant that rankings leave open."""
    path: str | None = None
    """Model to start from: a language model or a scalar sequence classifier; null takes the SFT model."""
    shared_prompts: bool | None = None
    """Compute the tokens that the answers of a ranking begin with once; null: where that takes fewer operations."""
    optimizer: Optimizer = Optimizer(learning_rate=1e-5, warmup_fraction=0.05)
    """How the weights are updated."""


class Dpo(Preferences):
    """Direct preference optimization: a policy straight from rankings, without a reward model in between."""

    data: Literal["preferences", "samples"] = "preferences"
    """Rankings of data.preferences, or those that the reward model gave the answers of rejection sampling."""
    answers_per_prompt: Annotated[int, Field(ge=2)] = 2
    """Answers of a prompt with data samples, evenly from the best to the worst."""
    start: Literal["sft", "sample"] = "sft"
    """Model to start from, which is the reference too: SFT's, or that of rejection sampling."""
    beta: Positive = 0.1
    """Implicit reward of a nat that the policy prefers an answer more than the reference does; larger stays closer."""
    loss: Literal["plackett_luce", "pairs"] = "pairs"
    """Likelihood of the whole ranking, or the mean Bradley-Terry loss of its pairs; equal for two answers."""
    optimizer: Optimizer = Optimizer(learning_rate=5e-7, warmup_fraction=0.1)
    """How the weights are updated."""


class RewardSource(Section):
    """One source of reward."""

    kind: Literal["model", "function", "http", "judge"] = "model"
    """Reward models of this run, a Python function, a service with POST /score, or a language model that rates."""
    name: str | None = None
    """Name in figures and errors; null is the kind."""
    weight: float = 1.0
    """Factor of its score in the sum that is the reward."""
    only: tuple[str, ...] = ()
    """Data sources (the field source of a prompt) whose prompts it scores, adding nothing to others; empty: all."""
    paths: tuple[str, ...] = ()
    """Kind model: folders of reward models with the run's tokenizer; empty takes the model of stage reward."""
    ensemble: Literal["mean", "worst"] = "mean"
    """Kind model: how the scores of several paths become one."""
    target: str | None = None
    """Kind function MODULE:FUNCTION, http the address of POST /score, judge NAME@URL of an OpenAI-compatible API."""
    prompts: str | None = None
    """Kind judge: folder with rate_system.txt and rate_user.txt in place of data/prompts."""
    key: str | None = None
    """Environment variable with the key for an http service or a judge; null sends a judge OPENAI_API_KEY's, if set."""
    batch: Count = 64
    """Answers of one call."""
    parallel: Count = 1
    """Processes of a function; requests that a judge gets at once."""
    timeout_s: Positive = 60
    """Longest wait for one call of a function or one request, in seconds."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Further tries after a connection error, status 429 or 5xx, or a judge's reply without a rating."""
    empty_answer: float | None = None
    """Score of an answer without text; null asks the source, and many services refuse it."""
    tolerated: Fraction = 0.0
    """Share of a batch's answers that may go without a score; they get the mean of the others and are counted."""

    @property
    def title(self) -> str:
        """How figures and errors call it."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _fits_its_kind(self) -> RewardSource:
        if (self.target is None) != (self.kind == "model"):
            told = "takes paths, no target" if self.kind == "model" else f"needs a target: {_TARGETS[self.kind]}"
            raise ValueError(f"a scoring source of kind {self.kind} {told}")
        if self.target and not re.fullmatch(_TARGET_FORMS[self.kind], self.target):
            raise ValueError(f"target of a {self.kind} is {self.target!r}, expected {_TARGETS[self.kind]}")
        for field, kinds in _KINDS.items():
            given = getattr(self, field) != RewardSource.model_fields[field].default
            if given and self.kind not in kinds.split():
                raise ValueError(f"{field} has no effect on a scoring source of kind {self.kind}, only on {kinds}")
        if self.ensemble == "worst" and len(self.paths) < 2:
            raise ValueError("ensemble worst needs two or more paths")
        return self


_KINDS = {
    "paths": "model", "ensemble": "model", "prompts": "judge", "key": "http judge", "retries": "http judge",
    "parallel": "function judge", "batch": "function http judge", "timeout_s": "function http judge",
    "empty_answer": "function http judge",
}  # fmt: skip
"""Which kinds have a field; the others have it for all."""
_TARGETS = {
    "function": "MODULE:FUNCTION",
    "http": "http://HOST:PORT/score",
    "judge": "NAME@http://HOST:PORT/v1",
}
_TARGET_FORMS = {"function": r"[\w.]+:\w+", "http": r"https?://.+", "judge": r".+@https?://.+"}


class Scoring(Section):
    """The reward of answers in rejection sampling and RL: the weighted sum of what its sources say."""

    sources: Annotated[tuple[RewardSource, ...], Field(min_length=1)] = (RewardSource(),)
    """Where scores come from."""
    functions: str = "."
    """Folder, from where the command runs, in which modules of functions are looked for after installed packages."""

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[RewardSource, ...]) -> tuple[RewardSource, ...]:
        names = [source.title for source in sources]
        if twice := sorted(name for name in set(names) if names.count(name) > 1):
            raise ValueError(f"two scoring sources are called {twice[0]!r}; give them different names")
        return sources


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


class Algorithm(Section):
    """What every RL algorithm has."""

    learning_rate: Positive = 1e-6
    """Peak learning rate of the policy."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL penalty (k1) in the reward, per token, in units of reward."""
    kl_target: Positive | None = None
    """Mean KL of an answer to the SFT model, in nats, that kl_coef is steered to; null keeps kl_coef as it is."""
    kl_horizon: Count = 10000
    """Answers over which kl_coef follows kl_target; fewer follow faster."""
    kl_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL to the SFT model as a loss (k2), per token."""

    @model_validator(mode="after")
    def _target_has_a_coefficient(self) -> Algorithm:
        name = type(self).__name__.lower()
        if self.kl_target and not self.kl_coef:
            raise ValueError(f"rl.{name}.kl_target steers kl_coef, which is 0 and would stay so; start it above 0")
        if self.kl_horizon != Algorithm.model_fields["kl_horizon"].default and not self.kl_target:
            raise ValueError(f"rl.{name}.kl_horizon {self.kl_horizon} has no effect without kl_target")
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether anything that is learned depends on the reference model."""
        return bool(self.kl_coef or self.kl_loss)


class Clipped(Algorithm):
    """PPO's clipped ratio, which the critic-free algorithms use as well."""

    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far below 1 the ratio is trusted."""
    clip_high: Positive | None = None
    """How far above 1 the ratio is trusted; null is clip."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss of a token with a negative advantage, in multiples of the advantage (usually 3); null none."""


class Ppo(Clipped):
    """Proximal policy optimization with a per-token KL penalty in the reward."""

    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over the iteration's tokens."""


class Rloo(Clipped):
    """REINFORCE leave-one-out: the mean reward of a prompt's other answers is the baseline (arXiv:2402.14740)."""


class Grpo(Clipped):
    """Group-relative policy optimization (arXiv:2402.03300): the mean reward of a prompt's answers is the baseline."""

    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL penalty (k1) in the reward, per token, in units of reward."""
    kl_loss: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the KL to the SFT model as a loss (k2), per token."""
    divide_by_std: bool = True
    """Divide by the deviation of the group's rewards; false does not, as in arXiv:2503.20783."""


class Reinforce(Clipped):
    """REINFORCE++ (arXiv:2501.03262): the reward to come, whitened over the iteration's tokens, without a critic."""

    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over the iteration's tokens."""


class Apa(Algorithm):
    """Advantage-induced policy alignment: squared error to log pi_ref + advantage / lambda (arXiv:2306.02231)."""

    lam: Positive = 0.1
    """Lambda: how close to the anchor the policy stays; larger is closer."""
    anchor: Literal["ref", "old"] = "ref"
    """Anchor of the squared error: the SFT model (paper) or the policy that made the rollouts (Starling's code)."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward; the paper has none."""
    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over the iteration's tokens."""

    @property
    def needs_reference(self) -> bool:
        return self.anchor == "ref" or super().needs_reference


class Awr(Algorithm):
    """Advantage-weighted regression (arXiv:1910.00177): log-likelihood weighted by exp(coef x advantage)."""

    coef: Positive = 1.0
    """One over the temperature of the weights; larger prefers good answers more."""
    max_weight: Positive = 20.0
    """Bound of a token's weight."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of a KL penalty in the reward, in units of reward."""
    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over the iteration's tokens."""


class Lora(Section):
    """Low-rank adapters (arXiv:2106.09685) instead of all weights; the reference is the policy without them."""

    rank: Count = 16
    """Rank of an adapter's two matrices."""
    alpha: Positive = 32.0
    """The adapter's output is multiplied by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the layers that get one, or all-linear: every linear layer but the head."""


class Monitor(Section):
    """Signs of reward hacking: what is watched, and from where on it is an alarm; nothing here changes the policy."""

    second: str | None = None
    """Folder of a reward model that is only asked, never trained on; null takes the judge of evaluate, if a model."""
    kl: bool = True
    """Measure the KL to the SFT model in every iteration, also where nothing that is learned needs it."""
    max_kl: Positive | None = 50.0
    """Alarm where the mean KL to the SFT model is above this, in nats per answer; null never."""
    max_length_ratio: Positive | None = 2.0
    """Alarm where the mean answer length is above this multiple of iteration 0's; null never."""
    min_length_ratio: Positive | None = 0.5
    """Alarm where the mean answer length is below this share of iteration 0's; null never."""
    max_truncated: Fraction | None = 0.5
    """Alarm where more than this share of the answers are cut at rollout.max_new_tokens; null never."""
    max_repetition: Fraction | None = 0.3
    """Alarm where more than this share of an answer's 4-grams repeat earlier ones, on the average; null never."""
    min_distinct: Positive | None = 0.3
    """Alarm where the share of different 2-grams is below this multiple of iteration 0's; null never."""
    max_second_drop: Positive | None = 0.5
    """Alarm where the second model's mean score fell by this many standard deviations of iteration 0; null never."""
    prompts: Annotated[int, Field(ge=0)] = 8
    """Held-out prompts that are the same in all iterations and whose answers are kept to be read; 0 for none."""
    every: Count = 1
    """Iterations from one look at the fixed prompts to the next; the last iteration has one too."""
    stop_on_alarm: bool = False
    """Stop the stage after `patience` iterations in a row with the same alarm; otherwise alarms only warn."""
    patience: Count = 3
    """Iterations in a row with the same alarm that stop the stage; only with stop_on_alarm."""

    @model_validator(mode="after")
    def _patience_is_of_stopping(self) -> Monitor:
        if self.patience != Monitor.model_fields["patience"].default and not self.stop_on_alarm:
            raise ValueError(f"rl.monitor.patience {self.patience} has no effect without rl.monitor.stop_on_alarm true")
        return self


class Rl(Section):
    """Online RL: what the algorithms share, and each one's own numbers."""

    algorithms: Annotated[tuple[AlgorithmName, ...], Field(min_length=1)] = ("ppo", "apa")
    """Algorithms to run, each from the SFT model on its own; rloo, grpo and reinforce have no critic."""
    mode: Literal["sync", "one_step_off", "colocate"] = "sync"
    """Generate, then train; or generate the next answers while training; or take turns on the same GPUs."""
    iterations: Count = 100
    """Rounds of generating, scoring and updating."""
    prompts_per_iteration: Count = 64
    """Prompts answered per iteration."""
    samples_per_prompt: Count = 4
    """Answers drawn per prompt."""
    samples_per_step: Count = 128
    """Answers of one optimizer step; divides prompts_per_iteration x samples_per_prompt."""
    epochs: Count = 2
    """Passes over an iteration's answers."""
    gamma: Fraction = 1.0
    """Discount per token."""
    gae_lambda: Fraction = 0.95
    """GAE lambda: 1 is the plain return, lower trusts the critic more."""
    reward_clip: Positive | None = 10.0
    """Scores beyond plus or minus this are cut, in units of reward; null never cuts."""
    reward_scaling: Literal["none", "clip_then_std", "std_then_clip"] = "none"
    """Divide scores by the standard deviation of all so far, after cutting them (Starling) or before (APA)."""
    length_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Taken from the score for each token of the answer, in units of reward."""
    missing_eos_reward: float | None = None
    """Score given to an answer that was cut at max_new_tokens, whatever the scaling; null keeps its score."""
    value_clip: Positive | None = 0.2
    """Half width of the critic's trust interval around its old values; null does not clip."""
    critic_learning_rate: Positive = 5e-6
    """Peak learning rate of the critic."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 0
    """First iterations that train the critic only."""
    old_logprobs: Literal["trainer", "rollout"] = "trainer"
    """Whose log-probs of the answers are the old ones: the trainer's, in a pass of their own, or the engine's."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Cap of the importance weight between trainer and rollout probabilities of a token; with old_logprobs trainer."""
    max_mismatch: Positive | None = None
    """Mean gap between trainer and rollout log-probs that stops a run, in nats; null is 1e-4, in bfloat16 0.05."""
    shared_prompts: bool | None = None
    """Compute a prompt's tokens once for its answers; null: where that takes fewer operations and the model can."""
    sequence_parallel: Count = 1
    """Ranks of policy and critic that share each row's tokens, and in attention the heads (Ulysses)."""
    lora: Lora | None = None
    """Train low-rank adapters of the policy; null trains all its weights."""
    save_rollouts: bool = True
    """Keep each iteration's answers with all that was measured of them as parquet; rayward rl --replay reads them."""
    ppo: Ppo = Ppo()
    """PPO's own numbers."""
    rloo: Rloo = Rloo()
    """RLOO's own numbers."""
    grpo: Grpo = Grpo()
    """GRPO's own numbers."""
    reinforce: Reinforce = Reinforce()
    """REINFORCE++'s own numbers."""
    apa: Apa = Apa()
    """APA's own numbers."""
    awr: Awr = Awr()
    """AWR's own numbers."""
    monitor: Monitor = Monitor()
    """Signs of reward hacking."""
    optimizer: Updates = Updates(schedule="constant", warmup_fraction=0.0)
    """How policy and critic are updated; their learning rates are given above."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Rl:
        if self.old_logprobs == "rollout" and self.importance_cap != Rl.model_fields["importance_cap"].default:
            raise ValueError(
                f"rl.importance_cap {self.importance_cap:g} has no effect with rl.old_logprobs rollout, where the "
                "ratio itself is to the engine's log-probs; use old_logprobs trainer"
            )
        if self.sequence_parallel > 1 and self.shared_prompts is False:
            raise ValueError(
                f"rl.shared_prompts false has no effect with rl.sequence_parallel {self.sequence_parallel}, which lays "
                "rows back to back with shared prompts; set it to null"
            )
        alone = [name for name in self.algorithms if name in ("rloo", "grpo")]
        if alone and self.samples_per_prompt < 2:
            raise ValueError(
                f"rl.algorithms {alone[0]} compares the answers of a prompt, and rl.samples_per_prompt is "
                f"{self.samples_per_prompt}; give it at least 2"
            )
        return self

    def own(self, algorithm: str) -> Any:
        """An algorithm's own numbers."""
        return getattr(self, algorithm)


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
