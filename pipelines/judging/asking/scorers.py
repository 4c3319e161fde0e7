"""Judges that give each answer a number by itself: a reward model, a Python function.

They know no order, so nothing is shown twice; who has the higher number wins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayward.pipelines.data_tools.ledger import Ledger

if TYPE_CHECKING:
    from rayward.data.judging.questions import Question

FUNCTION = re.compile(r"[\w.]+:\w+")
BATCH = 64  # answers of a call; what they get is in the cache before the next call


@dataclass(frozen=True, slots=True)
class Scored:
    """An answer to be scored: the turns before it, the last one the user's."""

    question: Question
    turns: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the answer."""
        said: list[dict[str, str]] = []
        if self.question.system:
            said.append({"role": "system", "content": self.question.system})
        for number, turn in enumerate(self.turns):
            said.append({"role": "user", "content": turn})
            if number < len(self.turns) - 1:
                said.append({"role": "assistant", "content": self.answers[number]})
        return said


def is_function(judge: str) -> bool:
    """Whether a judge is MODULE:FUNCTION."""
    return bool(FUNCTION.fullmatch(judge)) and not Path(judge).exists()


def is_reward_model(judge: str) -> bool:
    """Whether a judge is a folder of a model that gives scores."""
    from rayward.data.model_files.hub_models import config_of, has_score_head

    return (Path(judge) / "config.json").is_file() and has_score_head(config_of(judge))


def add_scorers(parser: argparse.ArgumentParser) -> None:
    """Declare what a reward model or a function as judge takes."""
    add = parser.add_argument_group("a reward model or a function as judge").add_argument
    add("--functions", default=".", metavar="DIR", help="folder of MODULE:FUNCTION (default .)")
    add("--template", default="tokenizer", help="reward model: chat template (default its own)")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="reward model")
    add("--workers", type=int, default=1, metavar="N", help="processes that score (default 1)")
    add("--gpus", type=float, default=0.0, help="GPUs of each (default 0)")
    add("--threads", type=int, default=2, help="threads of each on the CPU (default 2)")


def scores(
    options: argparse.Namespace, answers: Sequence[Scored], cache: Ledger
) -> tuple[list[float | str], str]:
    """The score of each answer, or why it has none; and the judge's name.

    What the cache lacks is asked for. SourceDataError: the function fails.
    """
    judge = options.judge
    if is_function(judge):
        name, identity = judge, _file_digest(judge, options.functions)
    else:
        from rayward.data.model_files.hub_models import model_title
        from rayward.pipelines.run.given import model_digest

        name = model_title(judge)
        identity = f"{model_digest(Path(judge))} {options.template} {options.dtype}"

    def key(answer: Scored) -> str:
        reference = list(answer.question.reference)
        decides = [name, identity, answer.messages, answer.answers[len(answer.turns) - 1]]
        text = json.dumps([*decides, reference], ensure_ascii=False)
        return hashlib.sha256(text.encode(errors="replace")).hexdigest()

    keys = [key(answer) for answer in answers]
    missing = {k: answer for k, answer in zip(keys, answers, strict=True) if k not in cache.places}
    if missing:
        ask = _function if is_function(judge) else _reward_model
        ask(options, missing, cache)
    found = [cache.get(k) for k in keys]
    return [row["score"] if row["why"] is None else row["why"] for row in found], name


def _keep(
    cache: Ledger, answers: Mapping[str, Scored], values: Sequence[float | str | None]
) -> None:
    for (key, answer), value in zip(answers.items(), values, strict=True):
        why = None
        if not isinstance(value, float):
            why = value or "the function says nothing of it"
        score = value if isinstance(value, float) else None
        place = {"question_id": answer.question.id, "turn": len(answer.turns)}
        cache.add(key, {**place, "score": score, "why": why})


def _parts(missing: Mapping[str, Scored]) -> list[dict[str, Scored]]:
    items = list(missing.items())
    return [dict(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


def _function(options: argparse.Namespace, missing: Mapping[str, Scored], cache: Ledger) -> None:
    """Scores by a function as scoring.sources takes it."""
    from rayward.actors.scoring.sources import ResponseText, function_source
    from rayward.configs.sections.scoring import RewardSource
    from rayward.data.records import Turn

    source = RewardSource(kind="function", target=options.judge, name="the judge")
    ask = function_source(source, str(Path(options.functions).resolve()))
    for part in _parts(missing):
        batch = [
            ResponseText(
                tuple(Turn(message["role"], message["content"]) for message in answer.messages),  # type: ignore[arg-type]
                answer.answers[len(answer.turns) - 1],
                "\n".join(answer.question.reference[len(answer.turns) - 1 :][:1]) or None,
                answer.question.category,
                str(answer.question.id),
                True,
            )
            for answer in part.values()
        ]
        _keep(cache, part, ask(batch))


def _reward_model(
    options: argparse.Namespace, missing: Mapping[str, Scored], cache: Ledger
) -> None:
    """Scores by the actors of a reward model."""
    from rayward.actors.frozen_groups import RewardGroup
    from rayward.actors.group import running
    from rayward.cluster.connect import connect
    from rayward.configs.sections.machines import Cluster, Role
    from rayward.data.model_files.folder import positions
    from rayward.data.model_files.hub_models import config_of
    from rayward.data.ragged import Ragged
    from rayward.data.records import Prompt, RowError, Turn
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.rows.renderer import Renderer, check_vocabulary, scored_ids

    folder = str(Path(options.judge).resolve())
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, folder)
    longest = positions(config_of(folder)) or 1 << 30
    # Without a limit, for the length to be told: a score of a cut conversation is another's.
    renderer = Renderer(find(options.template), tokenizer, 1 << 30)
    connect(Cluster())
    role = Role(
        workers=options.workers,
        cpus=1 / options.workers,  # one in all, so that any number fits any machine
        gpus=options.gpus,
        threads=options.threads,
    )
    micro_batch_tokens = 8192 if options.gpus else 1024
    group = RewardGroup(folder, options.dtype, micro_batch_tokens, role, Cluster())
    with running(group):
        for part in _parts(missing):
            values: list[float | str] = []
            rows: list[list[int]] = []
            for answer in part.values():
                turns = tuple(Turn(m["role"], m["content"]) for m in answer.messages)  # type: ignore[arg-type]
                text = answer.answers[len(answer.turns) - 1]
                try:
                    ids = scored_ids(renderer, Prompt(turns), text, True)
                except RowError as error:
                    values.append(f"its chat template cannot render it: {error}")
                    continue
                if len(ids) > longest:
                    values.append(f"a conversation of {len(ids)} tokens, and it reads {longest}")
                    continue
                values.append(0.0)
                rows.append(ids)
            numbers = iter(group.score(Ragged.of(rows)).tolist() if rows else [])
            _keep(cache, part, [next(numbers) if isinstance(v, float) else v for v in values])


def _file_digest(function: str, folder: str) -> str:
    """Of the file that holds a function: another version of it is another judge."""
    from rayward.pipelines.run.given import module_file

    path = module_file(function.partition(":")[0], folder)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path else ""
