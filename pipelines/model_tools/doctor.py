"""`rayward doctor`: do the rollout engine and the trainer see the same model? For before RL.

The engine that samples in RL answers prompts, the module that RL trains reads the answers; figures
and limits are those of the RL stage. Then the same requests are sampled in batches of other sizes,
which should change nothing.
"""

from __future__ import annotations

import argparse
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.model_files.folder import positions
from rayward.data.model_files.hub_models import config_of, fetched

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from rayward.configs.schema import Config
    from rayward.data.ragged import Ragged
    from rayward.data.records import Prompt, Record
    from rayward.data.rollouts import Rollouts

MAX_ROW_TOKENS = 4096  # of a prompt with its answer, where the model would take more


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="is this machine fit for a run? with --model: the gap of engine and trainer on it",
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="M",
        help="folder or hub name ORG/NAME[@REVISION]; without it the machine is examined",
    )
    parser.add_argument(
        "--run",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="without --model: where runs will lie (default runs)",
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
    return _examine_machine(options.run) if options.model is None else _examine_model(options)


def _examine_machine(run: Path) -> int:
    from rayward.pipelines.model_tools.machine_check import examine_machine
    from rayward.pipelines.run.metrics import table

    found = list(examine_machine(run))
    table("", [(line.what, line.found) for line in found])
    for line in found:
        if line.note:
            print(f"note: {line.what}: {line.note}")
    problems = [line for line in found if line.problem]
    for line in problems:
        print(f"PROBLEM: {line.what}: {line.problem}")
    print("no run can start here" if problems else "a run can start here")
    return int(bool(problems))


def _examine_model(options: argparse.Namespace) -> int:
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.model_tools.examine import examine, is_reward_model
    from rayward.pipelines.run.metrics import table

    for name, lowest in (("count", 1), ("tokens", 1), ("threads", 1), ("gpus", 0)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name} is {getattr(options, name)}: at least {lowest}")
    if options.temperature <= 0:
        raise ValueError(
            f"--temperature is {options.temperature:g}: above 0, as in training rollouts"
        )
    options.model = Path(fetched(str(options.model)))
    problems, notes = examine(options.model, options.gpus, options.template)
    for line in notes:
        print(f"note: {line}")
    if problems:
        print("\n".join(f"PROBLEM: {line}" for line in problems))
        return 1
    if is_reward_model(options.model):
        from rayward.actors.models.load import load_scalar

        # ValueError where its scores are not its own forward's.
        load_scalar(str(options.model), options.dtype)
        print("fit to score: the scores are those of the model's own forward")
        return 0
    tokenizer = load_tokenizer(options.model)
    rollouts, resampled, trainer_N = measure(options, tokenizer)
    figures, complaint = judge(rollouts, trainer_N, options.dtype)
    rows: dict[str, Any] = {
        "answers": len(rollouts),
        "tokens": len(trainer_N),
        "finished": float(rollouts.finished.mean()),
        **figures,
    }
    for size, again in resampled.items():
        tokens, bits = differences(rollouts, again)
        rows[f"{size} at once: answers with other tokens"] = f"{tokens:.1%}"
        rows[f"{size} at once: log-probs with other bits"] = f"{bits:.1%}"
    where = f"{options.gpus} GPU" if options.gpus else "CPU"
    table(f"{options.model}, {options.dtype}, {where}, temperature {options.temperature:g}", rows)
    columns = ("largest gaps", "answer", "token number", "trainer", "rollout", "gap")
    table("", largest(rollouts, trainer_N, tokenizer), columns)
    print(complaint or "fit for RL: the engine runs the trainer's model")
    return 1 if complaint else 0


def measure(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> tuple[Rollouts, dict[int, Rollouts], np.ndarray]:
    """(answers, the first of them again by size of the batch, trainer's log-probs of the answers).

    Log-probs are [N], one for each response token, in row order. On the CPU the engine gets its
    weights from the trainer, as in RL: RuntimeError where that cannot be proved. With GPUs it reads
    them, and ends before the trainer starts, so that one GPU is enough for both.
    """
    import ray

    from rayward.actors.frozen_groups import frozen_group
    from rayward.actors.group import running
    from rayward.actors.rollout_group import RolloutGroup
    from rayward.cluster.connect import connect
    from rayward.data.ragged import merge

    folder = str(options.model.resolve())  # actors have working directories of their own
    prompts, stops = questions(options, tokenizer, folder)
    config = settings(options, folder, int(prompts.lengths.max()) + options.tokens)
    connect(config.cluster)
    engine = RolloutGroup(folder, config, config.resources.reference, load_weights=options.gpus > 0)
    trainer = None
    if not options.gpus:
        trainer = frozen_group("trainer", folder, config, options.temperature)

    def sample(rows: int, each: int) -> Rollouts:
        """The first of `each` answers to the first `rows` prompts.

        Its seed is made of the prompt's place and the sample's number, so that every call asks for
        the same answers, in a batch of rows * each requests.
        """
        drawn = engine.generate(
            prompts.take(range(rows)),
            each,
            ("doctor", options.seed),
            stops,
            options.temperature,
            options.tokens,
        )
        # A prompt's answers stand side by side.
        return drawn.take(range(0, rows * each, each))

    with running(engine, *([trainer] if trainer else [])):
        if trainer:
            # The engine was started without weights: these have to be there before it samples.
            trainer.call("connect", engine.actors, engine.backend)
            engine.prove(trainer.call("send_weights", 1)[0]["probe"], 1)
        rollouts = sample(len(prompts), 1)
        few = max(1, len(prompts) // 4)
        resampled = {2 * len(prompts): sample(len(prompts), 2), few: sample(few, 1)}
        if trainer:
            shards = trainer.call("logprobs", ray.put(rollouts))
            return rollouts, resampled, merge(shards, len(rollouts))
    # The engine has ended, and its GPU is free.
    trainer = frozen_group("trainer", folder, config, options.temperature)
    with running(trainer):
        shards = trainer.call("logprobs", ray.put(rollouts))
        return rollouts, resampled, merge(shards, len(rollouts))


def settings(options: argparse.Namespace, folder: str, context_tokens: int) -> Config:
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
        "data": {"toyworld": {}},  # for the checks of a run; nothing reads it
        "rollout": rollout,
        "resources": resources,
    }
    return checked(Config.model_validate(sections))


def questions(
    options: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, folder: str
) -> tuple[Ragged, list[int]]:
    """(prompts as token ids, ids that end an answer): of the file, else short random rows.

    ValueError: no prompt leaves room for an answer, or the answers alone do not fit the model.
    """
    from collections import Counter

    import numpy as np

    from rayward.configs.sections.model import Model
    from rayward.data.formats.registry import read
    from rayward.data.ragged import Ragged
    from rayward.data.records import Conversation, Prompt
    from rayward.pipelines.rows.prompts import fit_prompts
    from rayward.pipelines.rows.renderer import Renderer

    longest = positions(config_of(folder)) or MAX_ROW_TOKENS
    # One long prompt of the file would set the context of the whole engine.
    longest = min(longest, max(MAX_ROW_TOKENS, 2 * options.tokens))
    if options.tokens + 17 > longest:  # the longest random prompt below: BOS and 16 tokens
        raise ValueError(
            f"--tokens {options.tokens} leaves no room for a prompt in the model's {longest} "
            "positions"
        )
    if options.prompts is None:
        rng = np.random.default_rng(options.seed)
        ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows = [[*bos, *rng.choice(ordinary, rng.integers(4, 17))] for _ in range(options.count)]
        return Ragged.of(rows), [tokenizer.eos_token_id]
    renderer = Renderer.of(
        Model(path=folder, template=options.template or "tokenizer", context_tokens=longest), folder
    )

    def as_prompt(record: Record) -> Prompt:
        turns = record.turns
        if isinstance(record, Conversation):
            turns = tuple(takewhile(lambda turn: turn.role != "assistant", turns))
        return Prompt(turns, record.source, record.id, tools=record.tools)

    dropped: Counter[str] = Counter()
    records = islice(map(as_prompt, read(options.prompts)), options.count)
    _, prompts = fit_prompts(records, renderer, options.tokens, dropped)
    if not len(prompts):
        reasons = ", ".join(f"{count} x {rule}" for rule, count in dropped.items()) or "no row"
        raise ValueError(
            f"--prompts {options.prompts} has no prompt of at most {longest - options.tokens} "
            f"tokens: {reasons}"
        )
    return prompts, renderer.stop_token_ids


def judge(rollouts: Rollouts, trainer_N: np.ndarray, dtype: str) -> tuple[dict[str, float], str]:
    """(figures of the gap, why RL would refuse the model or "").

    `trainer_N`: the trainer's log-probs of the response tokens.
    """
    from rayward.configs.plan import MAX_MISMATCH
    from rayward.pipelines.rl.advantages import gap

    figures = gap(rollouts.with_columns(policy_logprobs=trainer_N))
    mean_gap, allowed = figures["mismatch_mean"], MAX_MISMATCH[dtype]
    if mean_gap <= allowed:  # false for NaN, which must not pass
        return figures, ""
    return figures, (
        f"NOT FIT FOR RL: log-probs of a token differ by {mean_gap:.3g} nats on the average, and "
        f"RL stops above {allowed:g} in {dtype} (rl.max_mismatch): the engine does not run the "
        "trainer's model"
    )


def differences(rollouts: Rollouts, again: Rollouts) -> tuple[float, float]:
    """Shares of answers in `again` with other tokens, and of log-probs with other bits.

    Row i of both are answers to one request; `again` may have fewer rows. Log-probs count up to the
    first token that differs: those after it are of another text.
    """
    other_answers = other_logprobs = compared = 0
    for row in range(len(again)):
        first, second = rollouts.take([row]), again.take([row])
        pairs = list(zip(first.responses.values, second.responses.values, strict=False))
        same = next((i for i, (left, right) in enumerate(pairs) if left != right), len(pairs))
        # One that is the beginning of the other differs, too.
        other_answers += same < max(len(first.responses.values), len(second.responses.values))
        unequal = first.rollout_logprobs[:same] != second.rollout_logprobs[:same]
        other_logprobs += int(unequal.sum())
        compared += same
    return other_answers / len(again), other_logprobs / max(1, compared)


def largest(
    rollouts: Rollouts, trainer_N: np.ndarray, tokenizer: PreTrainedTokenizerBase
) -> list[tuple]:
    """(token, answer, place in it, trainer's log-prob, engine's, gap) of the five largest gaps."""
    import numpy as np

    rollout_N = rollouts.rollout_logprobs
    lengths, offsets = rollouts.responses.lengths, rollouts.responses.offsets
    # A log-prob that is NaN is the worst gap, not one that sorting puts somewhere.
    gap_N = np.nan_to_num(np.abs(trainer_N - rollout_N), nan=np.inf)
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    rows = []
    for n in np.argsort(-gap_N, kind="stable")[:5]:
        token, row = int(rollouts.responses.values[n]), int(row_N[n])
        where = (
            f"{tokenizer.decode([token])!r} ({token})",
            row,
            f"{n - offsets[row] + 1} of {lengths[row]}",
        )
        rows.append((*where, float(trainer_N[n]), float(rollout_N[n]), float(gap_N[n])))
    return rows
