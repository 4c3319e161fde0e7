"""How the sections of a config fit together: each function raises ValueError where they do not."""

from __future__ import annotations

from rayward.configs.needs import needs
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import RECIPES, WITH_CRITIC
from rayward.configs.sections.model import CPU_HEAD_SIZES
from rayward.configs.stages import has


def checked(config: Config) -> Config:
    """The config, whose sections fit together. Raises ValueError with a line for each mistake."""
    for check in (needs, batches, processors, offloading, colocation):
        check(config)
    return config


def samples(config: Config) -> bool:
    """Whether engines answer prompts in any stage."""
    return any(has(config, stage) for stage in ("sample", "rl", "evaluate"))


def batches(config: Config) -> None:
    """Numbers of answers and tokens."""
    rl, rollout = config.rl, config.rollout
    answers = rl.prompts_per_iteration * rl.samples_per_prompt
    if answers % rl.samples_per_step:
        divisors = [n for n in range(1, answers + 1) if answers % n == 0]
        near = min(divisors, key=lambda n: abs(n - rl.samples_per_step))
        raise ValueError(
            f"rl.samples_per_step {rl.samples_per_step} does not divide rl.prompts_per_iteration x "
            f"rl.samples_per_prompt = {answers}; nearest that does: {near}"
        )
    if samples(config) and rollout.max_new_tokens >= config.model.context_tokens:
        raise ValueError(
            f"rollout.max_new_tokens {rollout.max_new_tokens} leaves no room for a prompt in "
            f"model.context_tokens {config.model.context_tokens}"
        )
    world = config.data.toyworld
    if has(config, "evaluate") and world and world.evaluation_prompts < config.evaluate.prompts:
        raise ValueError(
            f"evaluate.prompts {config.evaluate.prompts} is more than "
            f"data.toyworld.evaluation_prompts {world.evaluation_prompts}"
        )
    if rl.critic_warmup_iterations >= rl.iterations:
        raise ValueError(
            f"rl.critic_warmup_iterations {rl.critic_warmup_iterations} leaves no iteration of "
            f"rl.iterations {rl.iterations} that trains the policy"
        )


def processors(config: Config) -> None:
    """Processes, GPUs, and how weights get from one to the other."""
    resources, rollout = config.resources, config.resources.rollout
    if (rollout.min_workers or 1) > rollout.workers:
        raise ValueError(
            f"resources.rollout.min_workers {rollout.min_workers} is more than "
            f"resources.rollout.workers {rollout.workers}"
        )
    sharing = config.rl.sequence_parallel
    for name in ("policy", *(["critic"] if set(config.rl.algorithms) & set(WITH_CRITIC) else [])):
        workers = getattr(resources, name).workers
        if workers % sharing:
            raise ValueError(
                f"rl.sequence_parallel {sharing} does not divide resources.{name}.workers "
                f"{workers}; nearest that does: {sharing * max(1, round(workers / sharing))} "
                "workers"
            )
    whole = [name for name in config.rl.algorithms if RECIPES[name].whole_answers]
    if sharing > 1 and whole:
        raise ValueError(
            f"rl.sequence_parallel {sharing} leaves each rank a slice of an answer's tokens, and "
            f"the loss of {whole[0]} needs whole answers; set it to 1"
        )
    for name in ("train", "policy", "critic", "reference", "reward"):
        gpus = getattr(resources, name).gpus
        if gpus > 1:
            raise ValueError(
                f"resources.{name}.gpus is {gpus:g}, but a process of this role uses one GPU at "
                "most; give it more workers"
            )
    # In colocate shares of a GPU are the rule, and `colocation` below checks them.
    shares = ("train", "reference")
    for name in shares if config.rl.mode == "colocate" else (*shares, "policy", "critic"):
        role = getattr(resources, name)
        if 0 < role.gpus < 1 < role.workers:
            raise ValueError(
                f"resources.{name} has {role.workers} workers with {role.gpus:g} GPU each, which "
                "Ray would put on the same GPU; ranks of one model need one each"
            )
    if rollout.gpus > 1 and rollout.gpus % 1:
        raise ValueError(f"resources.rollout.gpus is {rollout.gpus:g}; above 1 it must be whole")
    if rollout.gpus > 1 and not resources.reference.gpus:
        raise ValueError(
            f"resources.rollout.gpus is {rollout.gpus:g}: engines of several GPUs take weights "
            "from GPUs only, in evaluate from resources.reference; give it gpus"
        )
    transfer = config.rollout.weight_transfer
    if transfer == "nccl" and config.rl.mode == "colocate":
        raise ValueError(
            "rollout.weight_transfer nccl does not work with rl.mode colocate, where engine and "
            "policy share a GPU: NCCL refuses two ranks on one; use ipc or auto"
        )
    if transfer == "ipc" and rollout.gpus + resources.policy.gpus > 1:
        raise ValueError(
            "rollout.weight_transfer ipc hands over memory within one GPU, and an engine of "
            f"{rollout.gpus:g} GPU and a policy rank of {resources.policy.gpus:g} do not share "
            "one: use nccl or auto, or rl.mode colocate with shares"
        )
    fraction = config.rollout.gpu_memory_fraction
    if 0 < rollout.gpus < min(1, fraction) and config.rl.mode != "colocate":
        raise ValueError(
            f"rollout.gpu_memory_fraction {fraction:g} is more than an engine's share of a GPU, "
            f"resources.rollout.gpus {rollout.gpus:g}; others on it would have no room"
        )
    for name in ("policy", "reference"):
        if config.rollout.weight_transfer in ("nccl", "ipc") and not min(
            getattr(resources, name).gpus, rollout.gpus
        ):
            raise ValueError(
                f"rollout.weight_transfer {config.rollout.weight_transfer} needs GPUs on both "
                f"sides; resources.{name}.gpus is {getattr(resources, name).gpus:g}, "
                f"resources.rollout.gpus {rollout.gpus:g}; use object_store"
            )
    scratch = config.model.scratch
    if (
        samples(config)
        and scratch
        and not rollout.gpus
        and scratch.hidden_size // scratch.heads not in CPU_HEAD_SIZES
    ):
        raise ValueError(
            "model.scratch has heads of hidden_size / heads = "
            f"{scratch.hidden_size // scratch.heads}; vLLM on the CPU takes "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}"
        )


def offloading(config: Config) -> None:
    """Optimizer states in the memory of the host."""
    resources = config.resources
    trained = [
        ("sft", config.sft.optimizer),
        ("reward", config.reward.optimizer),
        ("dpo", config.dpo.optimizer),
    ]
    trained += [("sample.training", config.sample.training.optimizer)]
    optimizers = [(name, optimizer, "train") for name, optimizer in trained]
    for name, optimizer, role in [
        *optimizers,
        *(("rl", config.rl.optimizer, role) for role in ("policy", "critic")),
    ]:
        gpus = getattr(resources, role).gpus
        if optimizer.offload and (gpus == 0 or optimizer.zero_stage < 2):
            raise ValueError(
                f"{name}.optimizer.offload works with GPUs and zero_stage 2 or 3 only; here "
                f"resources.{role}.gpus is {gpus:g}, zero_stage {optimizer.zero_stage}"
            )


def colocation(config: Config) -> None:
    """Engines and learners that take turns on the same GPUs."""
    if config.rl.mode != "colocate":
        return
    optimizer = config.rl.optimizer
    roles = {name: getattr(config.resources, name) for name in ("rollout", "policy", "critic")}
    if config.resources.rollout.min_workers:
        raise ValueError(
            "resources.rollout.min_workers does not work with rl.mode colocate, where each "
            "engine shares a GPU with a rank of the policy; leave it out"
        )
    shown = ", ".join(
        f"resources.{name} {role.workers} x {role.gpus:g}" for name, role in roles.items()
    )
    sharing = [name for name, role in roles.items() if role.gpus]
    if (
        sharing[:2] != ["rollout", "policy"]
        or not 0.5 < sum(roles[name].gpus for name in sharing) <= 1
    ):
        raise ValueError(
            "rl.mode colocate lets engines and trainers take turns on the same GPUs: their gpus "
            "have to be shares that add up to more than half a GPU and at most one; here: "
            f"{shown}. Or use sync or one_step_off"
        )
    if len({roles[name].workers for name in sharing}) > 1:
        raise ValueError(
            f"rl.mode colocate needs as many engines as ranks of policy and critic; here: {shown}"
        )
    if config.model.dtype == "float32" and not optimizer.zero_stage:
        raise ValueError(
            "rl.mode colocate moves optimizer states to the host, which needs ZeRO: zero_stage 1 "
            "to 3"
        )
    if optimizer.zero_stage == 3 and (config.rl.lora or not optimizer.offload):
        raise ValueError(
            "rl.mode colocate can move the states of ZeRO-3 only with rl.optimizer.offload true "
            "and without rl.lora; or use zero_stage 2"
        )
