"""What a config will do, in lines for people: each stage with its model and its reward."""

from __future__ import annotations

from rayward.configs.plan import critic_start, given_second, rl_arithmetic, second_model
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import WITH_CRITIC
from rayward.configs.sections.data import LISTS
from rayward.configs.sections.suites import EvaluationSuite
from rayward.configs.stages import START, compared, first_model, has, models


def arithmetic_lines(config: Config) -> list[str]:
    """The RL batch arithmetic as one readable block."""
    rl, numbers = config.rl, rl_arithmetic(config, config.rl.algorithms[0])
    steps = {name: rl_arithmetic(config, name).policy_steps for name in rl.algorithms}
    # They differ where only some of the algorithms have a critic that warms up.
    policy = str(numbers.policy_steps)
    if len(set(steps.values())) > 1:
        policy = " or ".join(f"{count} ({name})" for name, count in steps.items())
    return [
        f"prompts per iteration {rl.prompts_per_iteration} x samples per prompt "
        f"{rl.samples_per_prompt} = {numbers.answers_per_iteration} answers per iteration"
        + (f", and up to {rl.extra_prompts} prompts more" if rl.extra_prompts else ""),
        f"{numbers.answers_per_iteration} answers / {rl.samples_per_step} samples per optimizer "
        f"step = {numbers.steps_per_epoch} steps per epoch x {rl.epochs} epochs = "
        f"{numbers.steps_per_iteration} a round",
        f"x {rl.iterations} iterations = {numbers.answers} answers, {policy} policy steps, "
        f"{numbers.critic_steps} critic steps where there is one, for each of: "
        f"{', '.join(rl.algorithms)}",
        f"micro-batches of at most {rl.optimizer.micro_batch_tokens} padded tokens a rank",
    ]


def stage_summary(config: Config, stage: str) -> str:
    """One line on what a stage does under this config, from which model and with which reward."""
    if not has(config, stage):
        return f"left out: {stage} is null"
    sft, reward, sample = config.sft, config.reward, config.sample
    start = _first(config)
    return {
        "prepare": _prepare(config),
        "sft": f"from {_base(config)}: {sft.epochs} epochs, {sft.samples_per_step} samples a step, "
        f"ZeRO-{sft.optimizer.zero_stage}",
        "reward": f"from {reward.path or start}: {reward.loss}, epochs: {reward.epochs}, "
        f"rankings a step: {reward.rankings_per_step}",
        "sample": f"from {start}: {sample.prompts} prompts x {sample.samples_per_prompt} answers, "
        f"best kept, then {sample.training.epochs} epochs of SFT; reward: {reward_text(config)}",
        "dpo": _dpo(config),
        "rl": f"from {start}: {', '.join(config.rl.algorithms)}: "
        f"{config.rl.iterations} iterations, {config.rl.mode}; "
        f"reward: {reward_text(config)}{_critic(config)}{_second(config)}",
        "evaluate": (
            f"{', '.join(_place(config, name) for name in compared(config)[1:])} against "
            f"{_place(config, compared(config)[0])}: {config.evaluate.prompts} held-out prompts, "
            f"judge: {config.evaluate.judge}"
        ),
        "publish": f"Ray Serve, model: {_published(config)}, port {config.publish.port}",
    }[stage]


def suite_summary(suite: EvaluationSuite) -> str:
    """One line on what a suite of evaluate does."""
    count = f"first {suite.limit} questions" if suite.limit else "all questions"
    against = f" against {suite.baseline}" if suite.baseline else ""
    return f"{suite.suite}, {count}: {suite.kind}{against}, judge: {suite.judge}"


def reward_text(config: Config) -> str:
    """The sources of reward and their weights."""
    sources = []
    for source in config.scoring.sources:
        where = source.target or f" {source.ensemble} ".join(source.paths) or "of stage reward"
        only = f" (only {', '.join(source.only)})" if source.only else ""
        factor = "" if source.weight == 1 else f"{source.weight:g} x "
        sources.append(f"{factor}{source.kind} {where}{only}")
    return " + ".join(sources)


def _base(config: Config) -> str:
    return config.model.path or "random weights"


def _first(config: Config) -> str:
    return _base(config) if first_model(config) == START else first_model(config)


def _dpo(config: Config) -> str:
    dpo = config.dpo
    start = {"sft": _first(config), "base": _base(config)}.get(dpo.start, dpo.start)
    numbers = {
        "dpo": f"{dpo.loss}, beta {dpo.beta:g}",
        "ipo": f"ipo, beta {dpo.beta:g}",
        "kto": f"kto, beta {dpo.beta:g}",
        "simpo": f"simpo, beta {dpo.simpo.beta:g}, gamma {dpo.simpo.gamma:g}",
        "orpo": f"orpo, lambda {dpo.orpo.lam:g}",
    }
    return f"from {start}: {numbers[dpo.objective]}, on the {dpo.data}"


def _critic(config: Config) -> str:
    """Where the critic starts, if any algorithm has one."""
    if not set(config.rl.algorithms) & set(WITH_CRITIC):
        return ""
    start = critic_start(config)
    return f"; critic from {'the policy, with a new head' if start == 'policy' else start}"


def _second(config: Config) -> str:
    """Who watches RL besides, if anybody."""
    given = given_second(config)
    return f"; watched by {given or 'the judge of stage reward'}" if second_model(config) else ""


def _place(config: Config, name: str) -> str:
    """A model by its name, and its folder where the config has that."""
    given = config.evaluate.models.get(name) or (config.model.path if name == START else None)
    return f"{name} ({given})" if given else name


def _published(config: Config) -> str:
    """The model that is served, as far as a config says."""
    name = config.publish.model
    if name != "best":
        return _place(config, name)
    if has(config, "evaluate"):
        return "best, the winner of evaluate"
    return f"best, without evaluate {_place(config, [START, *models(config)][-1])}"


def _prepare(config: Config) -> str:
    if config.data.toyworld:
        return "generate the toy world"
    counts = [(len(getattr(config.data, name)), name.replace("_", " ")) for name in LISTS]
    read = ", ".join(
        f"{name} from {count} source{'s' * (count > 1)}" for count, name in counts if count
    )
    return f"read and check {read}" if read else "read the tokenizer; no data is named"
