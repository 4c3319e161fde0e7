"""`rayward doctor`: do the rollout engine and the trainer see the same model? Asked before anyone
trains it.

The engine that samples in RL answers prompts, the module that RL trains reads the answers; figures
and limits are those of the RL stage. Then the same requests are sampled in batches of other sizes,
which should change nothing.
"""

from __future__ import annotations

import argparse
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from rayward.data.model_files.folder import positions
from rayward.data.model_files.hub_models import config_of, fetched

LONGEST = 4096  # tokens of a prompt with its answer, where the model would take more


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor", help="gap between rollout engine and trainer on a model, before RL"
    )
    parser.add_argument(
        "--model",
        type=Path,
        required=True,
        metavar="M",
        help="folder or hub name ORG/NAME[@REVISION]",
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="ask these, in any known format (default: random tokens)"
    )
    parser.add_argument(
        "--template", metavar="T", help="chat template to train with (default: the model's own)"
    )
    parser.add_argument("--count", type=int, default=32, metavar="N", help="prompts (default 32)")
    parser.add_argument(
        "--tokens", type=int, default=64, metavar="N", help="longest answer in tokens (default 64)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling (default 1)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default bfloat16"
    )
    parser.add_argument(
        "--gpus", type=int, default=0, metavar="N", help="GPUs of the engine; 0: the CPU (default)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="compute threads on the CPU (default 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of prompts and samples (default 0)")
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.model_tools.examine import examine, is_reward_model
    from rayward.pipelines.run.stage import table

    for name, lowest in (("count", 1), ("tokens", 1), ("threads", 1), ("gpus", 0)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name} is {getattr(options, name)}: at least {lowest}")
    if options.temperature <= 0:
        raise ValueError(
            f"--temperature is {options.temperature:g}: above 0, as in training rollouts"
        )
    options.model = Path(fetched(str(options.model)))
    broken, notes = examine(options.model, options.gpus, options.template)
    for line in notes:
        print(f"note: {line}")
    if broken:
        print("\n".join(f"PROBLEM: {line}" for line in broken))
        return 1
    if is_reward_model(options.model):
        from rayward.actors.models.load import load_scalar

        # ValueError where its scores are not its own forward's.
        load_scalar(str(options.model), options.dtype)
        print("fit to score: the scores are those of the model's own forward")
        return 0
    tokenizer = load_tokenizer(options.model)
    rollouts, others, trainer_N = measure(options, tokenizer)
    figures, complaint = judge(rollouts, trainer_N, options.dtype)
    shown = {
        "answers": len(rollouts),
        "tokens": len(trainer_N),
        "finished": float(rollouts.finished.mean()),
        **figures,
    }
    for size, again in others.items():
        tokens, bits = differences(rollouts, again)
        shown[f"{size} at once: answers with other tokens"] = f"{tokens:.1%}"
        shown[f"{size} at once: log-probs with other bits"] = f"{bits:.1%}"
    where = f"{options.gpus} GPU" if options.gpus else "CPU"
    table(f"{options.model}, {options.dtype}, {where}, temperature {options.temperature:g}", shown)
    columns = ("largest gaps", "answer", "token number", "trainer", "rollout", "gap")
    table("", largest(rollouts, trainer_N, tokenizer), columns)
    print(complaint or "fit for RL: the engine runs the trainer's model")
    return 1 if complaint else 0


def measure(options: argparse.Namespace, tokenizer: Any) -> tuple[Any, dict[int, Any], Any]:
    """(answers, the first of them again by the size of the batch, trainer's log-probs of the
    answers).

    On the CPU the engine gets its weights from the trainer, as in RL: RuntimeError where that
    cannot be proved. With GPUs it reads them, and ends before the trainer starts, so that one GPU
    is enough for both.
    """
    import ray

    from rayward.actors.group import RolloutGroup, frozen_group, running
    from rayward.cluster.connect import check_fits, connect
    from rayward.data.ragged import merge

    folder = str(options.model.resolve())  # actors have working directories of their own
    prompts, stops = questions(options, tokenizer, folder)
    config = settings(options, folder, int(prompts.lengths.max()) + options.tokens)
    connect(config.cluster)
    check_fits({"rollout": config.resources.rollout})
    engine = RolloutGroup(folder, config, config.resources.reference, loads=options.gpus > 0)
    trainer = (
        frozen_group("trainer", folder, config, options.temperature) if not options.gpus else None
    )

    def sample(rows: int, each: int) -> Any:
        """The first answer to the first prompts, out of `each`: its seed depends on the prompt's
        place alone.
        """
        asked = (
            prompts.take(range(rows)),
            each,
            ("doctor", options.seed),
            stops,
            options.temperature,
            options.tokens,
        )
        return engine.generate(*asked).take(range(0, rows * each, each))

    with running(engine, *([trainer] if trainer else [])):
        if trainer:
            trainer.call("connect", engine.actors, engine.backend)
            engine.prove(trainer.call("send_weights", 1)[0]["probe"], 1)
        rollouts = sample(len(prompts), 1)
        few = max(1, len(prompts) // 4)
        others = {2 * len(prompts): sample(len(prompts), 2), few: sample(few, 1)}
        if trainer:
            return (
                rollouts,
                others,
                merge(trainer.call("logprobs", ray.put(rollouts)), len(rollouts)),
            )
    trainer = frozen_group("trainer", folder, config, options.temperature)
    with running(trainer):
        return rollouts, others, merge(trainer.call("logprobs", ray.put(rollouts)), len(rollouts))


def settings(options: argparse.Namespace, folder: str, context_tokens: int) -> Any:
    """The config of a run that would sample like this."""
    from rayward.configs.checks import checked
    from rayward.configs.schema import Config

    model = {"path": folder, "context_tokens": max(16, context_tokens), "dtype": options.dtype}
    rollout = {"max_new_tokens": options.tokens, "temperature": options.temperature}
    threads = {"threads": options.threads}
    resources = {
        "rollout": {"gpus": options.gpus, **threads},
        "reference": {"gpus": min(1, options.gpus), **threads},
    }
    sections = {
        "model": model,
        "data": {"toyworld": {}},
        "rollout": rollout,
        "resources": resources,
    }
    return checked(Config.model_validate(sections))


def questions(options: argparse.Namespace, tokenizer: Any, folder: str) -> tuple[Any, list[int]]:
    """(prompts as token ids, ids that end an answer): chats of the file, else short rows of random
    tokens.

    ValueError: no prompt leaves room for an answer, or the answers alone do not fit the model.
    """
    from collections import Counter

    import numpy as np

    from rayward.configs.sections.model import Model
    from rayward.data.formats.registry import read
    from rayward.data.ragged import Ragged
    from rayward.data.records import Conversation, Prompt
    from rayward.pipelines.rows.renderer import Renderer
    from rayward.pipelines.rows.rows import fit_prompts

    longest = positions(config_of(folder)) or LONGEST
    longest = min(longest, max(LONGEST, 2 * options.tokens))
    if options.tokens + 17 > longest:
        raise ValueError(
            f"--tokens {options.tokens} leaves no room for a prompt in the model's {longest} "
            "positions"
        )
    if options.prompts is None:
        drawn = np.random.default_rng(options.seed)
        plain = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows = [[*first, *drawn.choice(plain, drawn.integers(4, 17))] for _ in range(options.count)]
        return Ragged.of(rows), [tokenizer.eos_token_id]
    renderer = Renderer.of(
        Model(path=folder, template=options.template or "tokenizer", context_tokens=longest), folder
    )

    def asked(record: Any) -> Prompt:
        before = takewhile(lambda turn: turn.role != "assistant", record.turns)
        return Prompt(
            tuple(before) if isinstance(record, Conversation) else record.turns,
            record.source,
            record.id,
        )

    dropped: Counter[str] = Counter()
    given = islice(map(asked, read(options.prompts)), options.count)
    _, prompts = fit_prompts(given, renderer, options.tokens, dropped)
    if not len(prompts):
        told = ", ".join(f"{count} x {rule}" for rule, count in dropped.items()) or "no row"
        raise ValueError(
            f"--prompts {options.prompts} has no prompt of at most {longest - options.tokens} "
            f"tokens: {told}"
        )
    return prompts, renderer.stop_token_ids


def judge(rollouts: Any, trainer_N: Any, dtype: str) -> tuple[dict[str, float], str]:
    """(figures of the gap, why RL would refuse the model or ""). `trainer_N`: log-probs of the
    answers' tokens.
    """
    from rayward.configs.plan import MAX_MISMATCH
    from rayward.pipelines.rl.advantages import gap

    figures = gap(rollouts.with_columns(policy_logprobs=trainer_N))
    found, allowed = figures["mismatch_mean"], MAX_MISMATCH[dtype]
    if found <= allowed:  # false for NaN
        return figures, ""
    return figures, (
        f"NOT FIT FOR RL: log-probs of a token differ by {found:.3g} nats on the average, and RL "
        f"stops above {allowed:g} in {dtype} (rl.max_mismatch): the engine does not run the "
        "trainer's model"
    )


def differences(rollouts: Any, again: Any) -> tuple[float, float]:
    """Shares of the answers in `again` with other tokens than in `rollouts`, and of the log-probs
    with other bits.

    Row i of both are answers to one request. Log-probs count up to the first token that differs.
    """
    other = bits = compared = 0
    for row in range(len(again)):
        one, two = rollouts.take([row]), again.take([row])
        pairs = list(zip(one.responses.values, two.responses.values, strict=False))
        same = next((at for at, (left, right) in enumerate(pairs) if left != right), len(pairs))
        other += same < max(len(one.responses.values), len(two.responses.values))
        bits += int((one.rollout_logprobs[:same] != two.rollout_logprobs[:same]).sum())
        compared += same
    return other / len(again), bits / max(1, compared)


def largest(rollouts: Any, trainer_N: Any, tokenizer: Any) -> list[tuple]:
    """(token, answer, place in it, trainer's log-prob, engine's, gap) of the five tokens with the
    largest gaps.
    """
    import numpy as np

    rollout_N, lengths, offsets = (
        rollouts.rollout_logprobs,
        rollouts.responses.lengths,
        rollouts.responses.offsets,
    )
    gap_N = np.nan_to_num(np.abs(trainer_N - rollout_N), nan=np.inf)
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    rows = []
    for at in np.argsort(-gap_N, kind="stable")[:5]:
        token, row = int(rollouts.responses.values[at]), int(row_N[at])
        where = (
            f"{tokenizer.decode([token])!r} ({token})",
            row,
            f"{at - offsets[row] + 1} of {lengths[row]}",
        )
        rows.append((*where, float(trainer_N[at]), float(rollout_N[at]), float(gap_N[at])))
    return rows
