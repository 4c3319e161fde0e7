"""`rayward doctor`: do the rollout engine and the trainer see the same model? Asked before anyone trains it.

The engine that samples in RL answers prompts, the module that RL trains reads the answers; figures and limits are those
of the RL stage. Then the same requests are sampled in batches of other sizes, which should change nothing.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

NEUTRAL = {
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}  # fmt: skip
"""Settings of a generation_config.json with the value that changes nothing."""
LONGEST = 4096  # tokens of a prompt with its answer, where the model would take more


def add(commands: Any) -> None:
    """Declare the command."""
    parser = commands.add_parser("doctor", help="gap between rollout engine and trainer on a model, before RL")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="model folder")
    parser.add_argument("--prompts", metavar="FILE", help="ask these, in any known format (default: random tokens)")
    parser.add_argument("--template", metavar="T", help="chat template to train with (default: the model's own)")
    parser.add_argument("--count", type=int, default=32, metavar="N", help="prompts (default 32)")
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="longest answer in tokens (default 64)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling (default 1)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="default bfloat16")
    parser.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs of the engine; 0: the CPU (default)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="compute threads on the CPU (default 2)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and samples (default 0)")
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from data.tokenizer import load_tokenizer
    from pipelines.stage import table

    for name, lowest in (("count", 1), ("tokens", 1), ("threads", 1), ("gpus", 0)):
        if getattr(options, name) < lowest:
            raise ValueError(f"--{name} is {getattr(options, name)}: at least {lowest}")
    if options.temperature <= 0:
        raise ValueError(f"--temperature is {options.temperature:g}: above 0, as in training rollouts")
    broken, notes = examine(options.model, options.gpus, options.template)
    for line in notes:
        print(f"note: {line}")
    if broken:
        print("\n".join(f"PROBLEM: {line}" for line in broken))
        return 1
    tokenizer = load_tokenizer(options.model)
    rollouts, others, trainer_N = measure(options, tokenizer)
    figures, complaint = judge(rollouts, trainer_N, options.dtype)
    shown = {"answers": len(rollouts), "tokens": len(trainer_N), "finished": float(rollouts.finished.mean()), **figures}
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


def examine(folder: Path, gpus: int = 0, template: str | None = None) -> tuple[list[str], list[str]]:
    """(what would break rollouts in training, what is worth knowing), with a chat template or the model's own.

    ValueError where there is no model folder, or no such template.
    """
    from transformers import AutoConfig, AutoTokenizer

    from configs.model import CPU_HEAD_SIZES
    from pipelines.rows import check_vocabulary

    if not (folder / "config.json").is_file():
        found = "has no config.json" if folder.is_dir() else "is no folder"
        raise ValueError(f"--model {folder} {found}; give a model folder as transformers saves it")
    broken, notes = [], []
    config = AutoConfig.from_pretrained(folder).get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not gpus and size not in CPU_HEAD_SIZES:
        broken.append(f"heads of {size}: vLLM on the CPU takes {', '.join(map(str, CPU_HEAD_SIZES))}; use --gpus")
    own = folder / "generation_config.json"
    given = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
    odd = {name: given[name] for name, value in NEUTRAL.items() if given.get(name) not in (None, value)}
    if odd:
        told = ", ".join(f"{name} {value}" for name, value in odd.items())
        notes.append(f"generation_config.json has {told}: training rollouts ignore it and sample all of the vocabulary")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return [*broken, f"no tokenizer in {folder}; copy the one that the model was trained with"], notes
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.eos_token_id is None:
        broken.append("the tokenizer has no end token, so no answer ever ends; set eos_token in tokenizer_config.json")
    try:
        check_vocabulary(tokenizer, str(folder))
    except ValueError as error:
        broken.append(str(error))
    if (spare := config.vocab_size - len(tokenizer)) > 0:
        notes.append(f"the model has {spare} ids more than its tokenizer has tokens; rollouts may sample them")
    more, told = spelling(folder, template)
    return broken + more, notes + told


def spelling(folder: Path, name: str | None) -> tuple[list[str], list[str]]:
    """What breaks, and what is worth knowing, of the words of a model: its tokenizer with a chat template."""
    from tempfile import TemporaryDirectory

    from transformers import AutoConfig, AutoTokenizer

    from data.own_behaviour import behaviour, unlike_own
    from data.saved_tokenizer import assert_keeps_text, assert_served_as_trained, save_tokenizer
    from data.template_jinja import jinja
    from data.templates import find

    tokenizer, template = AutoTokenizer.from_pretrained(folder), find(name or "tokenizer")
    notes: list[str] = []
    try:
        assert_keeps_text(tokenizer)
        if template.own and name is None and not tokenizer.chat_template:
            return [], ["the tokenizer has no chat template: name one, here with --template and in model.template"]
        told = behaviour(tokenizer) if template.own else list(filter(None, [unlike_own(template, tokenizer)]))
        notes += [f"chat template {template.name}: {line}" for line in told]
        if not template.own:
            tokenizer.chat_template = jinja(template, tokenizer)
        assert_served_as_trained(template, tokenizer)
        with TemporaryDirectory() as place:
            save_tokenizer(tokenizer, place, AutoConfig.from_pretrained(folder))
    except ValueError as error:
        return [str(error)], notes
    return [], notes


def measure(options: argparse.Namespace, tokenizer: Any) -> tuple[Any, dict[int, Any], Any]:
    """(answers, the first of them again by the size of the batch, trainer's log-probs of the answers).

    On the CPU the engine gets its weights from the trainer, as in RL: RuntimeError where that cannot be proved. With
    GPUs it reads them, and ends before the trainer starts, so that one GPU is enough for both.
    """
    import ray

    from actors.group import RolloutGroup, frozen_group, running
    from cluster.connect import check_fits, connect
    from data.ragged import merge

    folder = str(options.model.resolve())  # actors have working directories of their own
    prompts, stops = questions(options, tokenizer, folder)
    config = settings(options, folder, int(prompts.lengths.max()) + options.tokens)
    connect(config.cluster)
    check_fits({"rollout": config.resources.rollout})
    engine = RolloutGroup(folder, config, config.resources.reference, loads=options.gpus > 0)
    trainer = frozen_group("trainer", folder, config, options.temperature) if not options.gpus else None

    def sample(rows: int, each: int) -> Any:
        """The first answer to the first prompts, out of `each`: its seed depends on the prompt's place alone."""
        asked = (prompts.take(range(rows)), each, ("doctor", options.seed), stops, options.temperature, options.tokens)
        return engine.generate(*asked).take(range(0, rows * each, each))

    with running(engine, *([trainer] if trainer else [])):
        if trainer:
            trainer.call("connect", engine.actors, engine.backend)
            engine.prove(trainer.call("send_weights", 1)[0]["probe"], 1)
        rollouts = sample(len(prompts), 1)
        few = max(1, len(prompts) // 4)
        others = {2 * len(prompts): sample(len(prompts), 2), few: sample(few, 1)}
        if trainer:
            return rollouts, others, merge(trainer.call("logprobs", ray.put(rollouts)), len(rollouts))
    trainer = frozen_group("trainer", folder, config, options.temperature)
    with running(trainer):
        return rollouts, others, merge(trainer.call("logprobs", ray.put(rollouts)), len(rollouts))


def settings(options: argparse.Namespace, folder: str, context_tokens: int) -> Any:
    """The config of a run that would sample like this."""
    from configs.schema import Config

    model = {"path": folder, "context_tokens": max(16, context_tokens), "dtype": options.dtype}
    rollout = {"max_new_tokens": options.tokens, "temperature": options.temperature}
    threads = {"threads": options.threads}
    resources = {"rollout": {"gpus": options.gpus, **threads}, "reference": {"gpus": min(1, options.gpus), **threads}}
    sections = {"model": model, "data": {"toyworld": {}}, "rollout": rollout, "resources": resources}
    return Config.model_validate(sections)


def questions(options: argparse.Namespace, tokenizer: Any, folder: str) -> tuple[Any, list[int]]:
    """(prompts as token ids, ids that end an answer): chats of the file, else short rows of random tokens.

    ValueError: no prompt leaves room for an answer, or the answers alone do not fit the model.
    """
    from collections import Counter

    import numpy as np
    from transformers import AutoConfig

    from configs.model import Model
    from data.formats import read
    from data.ragged import Ragged
    from data.records import Conversation, Prompt
    from pipelines.rows import Renderer, fit_prompts

    longest = getattr(AutoConfig.from_pretrained(folder).get_text_config(), "max_position_embeddings", LONGEST)
    longest = min(longest, max(LONGEST, 2 * options.tokens))
    if options.tokens + 17 > longest:
        raise ValueError(f"--tokens {options.tokens} leaves no room for a prompt in the model's {longest} positions")
    if options.prompts is None:
        drawn = np.random.default_rng(options.seed)
        plain = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        rows = [[*first, *drawn.choice(plain, drawn.integers(4, 17))] for _ in range(options.count)]
        return Ragged.of(rows), [tokenizer.eos_token_id]
    renderer = Renderer.of(Model(path=folder, template=options.template or "tokenizer", context_tokens=longest), folder)

    def asked(record: Any) -> Prompt:
        before = takewhile(lambda turn: turn.role != "assistant", record.turns)
        return Prompt(tuple(before) if isinstance(record, Conversation) else record.turns, record.source, record.id)

    dropped: Counter[str] = Counter()
    given = islice(map(asked, read(options.prompts)), options.count)
    _, prompts = fit_prompts(given, renderer, options.tokens, dropped)
    if not len(prompts):
        told = ", ".join(f"{count} x {rule}" for rule, count in dropped.items()) or "no row"
        raise ValueError(
            f"--prompts {options.prompts} has no prompt of at most {longest - options.tokens} tokens: {told}"
        )
    return prompts, renderer.stop_token_ids


def judge(rollouts: Any, trainer_N: Any, dtype: str) -> tuple[dict[str, float], str]:
    """(figures of the gap, why RL would refuse the model or ""). `trainer_N`: log-probs of the answers' tokens."""
    from configs.plan import MAX_MISMATCH
    from pipelines.advantages import gap

    figures = gap(rollouts.with_columns(policy_logprobs=trainer_N))
    found, allowed = figures["mismatch_mean"], MAX_MISMATCH[dtype]
    if found <= allowed:  # false for NaN
        return figures, ""
    return figures, (
        f"NOT FIT FOR RL: log-probs of a token differ by {found:.3g} nats on the average, and RL stops above "
        f"{allowed:g} in {dtype} (rl.max_mismatch): the engine does not run the trainer's model"
    )


def differences(rollouts: Any, again: Any) -> tuple[float, float]:
    """Shares of the answers in `again` with other tokens than in `rollouts`, and of the log-probs with other bits.

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
    """(token, answer, place in it, trainer's log-prob, engine's, gap) of the five tokens with the largest gaps."""
    import numpy as np

    rollout_N, lengths, offsets = rollouts.rollout_logprobs, rollouts.responses.lengths, rollouts.responses.offsets
    gap_N = np.nan_to_num(np.abs(trainer_N - rollout_N), nan=np.inf)
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    rows = []
    for at in np.argsort(-gap_N, kind="stable")[:5]:
        token, row = int(rollouts.responses.values[at]), int(row_N[at])
        where = (f"{tokenizer.decode([token])!r} ({token})", row, f"{at - offsets[row] + 1} of {lengths[row]}")
        rows.append((*where, float(trainer_N[at]), float(rollout_N[at]), float(gap_N[at])))
    return rows
