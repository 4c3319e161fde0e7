"""`rayward data rank`: a judge puts the answers to each prompt in order, as in Nectar."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.feedback import Feedback, FeedbackItem, add_options, outputs
from rayward.pipelines.data_tools.options import add_format, add_reading, read_options

if TYPE_CHECKING:
    from rayward.data.feedback.prompt_files import Prompts
    from rayward.data.records import Ranking
    from rayward.pipelines.data_tools.endpoint import ChatModel


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "rank", help="have a judge rank the answers to each prompt, as in Nectar"
    )
    parser.add_argument(
        "input",
        metavar="IN",
        help="rankings or preferences in any format; their ranks are not used",
    )
    add_format(parser)
    add_reading(parser)
    parser.add_argument(
        "--repeat",
        type=float,
        default=0.0,
        metavar="F",
        help="rank this share twice, for agreement",
    )
    parser.add_argument(
        "--longest",
        type=int,
        default=30000,
        metavar="N",
        help="characters of the judge's prompt (default 30000)",
    )
    parser.add_argument(
        "--guided",
        action="store_true",
        help="vLLM endpoints: the reply is the list alone, without comparisons",
    )
    add_options(parser, judge={"temperature": 0.0, "max_tokens": 2048})
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.feedback.prompt_files import digest, load_prompts
    from rayward.data.feedback.ranking import agreement
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.formats.writers.table import WRITERS
    from rayward.pipelines.data_tools.endpoint import models

    if not 0 <= options.repeat <= 1:
        raise ValueError(f"--repeat is {options.repeat}: a share, from 0 to 1")
    # Of its folder only the texts are read, so data may lie beside them.
    texts = options.prompts.glob("*.txt") if options.prompts else ()
    refuse_overwriting(outputs(options), [options.input, *texts])
    prompts, writer = load_prompts(options.prompts), WRITERS["nectar"]
    # The input is read three times, to count, to rank and to write, and never held.
    total = sum(1 for _ in _items(options))
    settings = {"prompts": digest(sorted(prompts.items()))}
    settings |= {name: vars(options)[name] for name in ("repeat", "longest", "guided")}
    twice: list[tuple[list[int], list[int]]] = []

    def rows(ranking: Ranking, result: dict[str, Any]) -> list[dict[str, Any]]:
        best_first = result["best_first"]
        if "again" in result:
            twice.append((best_first, result["again"]))
        ranked = replace(ranking, answers=tuple(ranking.answers[place] for place in best_first))
        return writer.rows(ranked, [])

    with Feedback(options, ("judge",), **settings) as feedback:
        with models(options, "judge") as (judge,):
            feedback.work(
                _items(options), total, lambda ranking: _rank(ranking, judge, prompts, options)
            )
        feedback.write(_items(options), writer.columns, rows)
        measures = {"agreement": agreement(twice)} if options.repeat else {}
        return feedback.close([judge], **measures)


def _items(options: argparse.Namespace) -> Iterator[FeedbackItem]:
    """The rankings of the input in order. What Nectar rows cannot hold is known before it costs."""
    from rayward.data.feedback.prompt_files import digest
    from rayward.data.formats.registry import outcomes
    from rayward.data.formats.writers.table import WRITERS
    from rayward.data.records import Preference, Ranking, RowError

    number = 0
    asked = read_options(options)
    for outcome in outcomes(options.input, options.source, token_files=False, options=asked):
        for record in outcome.records or [outcome.error]:
            number += 1
            where = {"id": getattr(record, "id", ""), "file": outcome.file, "line": outcome.line}
            try:
                if isinstance(record, RowError):
                    raise record
                ranking = record.as_ranking() if isinstance(record, Preference) else record
                if not isinstance(ranking, Ranking):
                    kind = type(ranking).__name__.lower()
                    raise RowError("record", kind, "ranking or preference", "no answers to rank")
                ranking = replace(ranking, ranks=None)
                WRITERS["nectar"].rows(ranking, [])  # for its RowError alone
            except RowError as error:
                yield FeedbackItem(where, error)
                continue
            # By its number, since equal rows are ranked each, and by its texts, since another input
            # may stand at the same path when the run goes on.
            tools = [ranking.tools] if ranking.tools else []
            texts = digest(*ranking.turns, *tools, *ranking.answers)[:16]
            yield FeedbackItem(where, ranking, f"{number}:{texts}")


async def _rank(
    ranking: Ranking, judge: ChatModel, prompts: Prompts, options: argparse.Namespace
) -> dict[str, Any]:
    """Places in `ranking.answers`, "best_first"; those of a second ranking in "again".

    Which share is ranked twice follows from the seed and the texts, so that a run that goes on
    chooses as the one before.
    """
    from rayward.data.feedback.prompt_files import digest
    from rayward.data.feedback.ranking import item_digest
    from rayward.data.records import RowError

    result = {"best_first": await _ask(ranking, judge, prompts, options)}
    if int(digest(options.seed, "repeat", item_digest(ranking))[:8], 16) < options.repeat * 16**8:
        # A second reply that cannot be read: the first ranking stands, and does not count for the
        # agreement.
        with suppress(RowError):
            result["again"] = await _ask(ranking, judge, prompts, options, again=True)
    return result


async def _ask(
    ranking: Ranking,
    judge: ChatModel,
    prompts: Prompts,
    options: argparse.Namespace,
    again: bool = False,
) -> list[int]:
    """The places in `ranking.answers` as one reply of the judge orders them, best first."""
    from rayward.data.feedback.ranking import (
        judge_messages,
        only_a_list,
        parse_ranking,
        shown_order,
    )
    from rayward.data.records import RowError

    order = shown_order(ranking, options.seed, again)
    messages = judge_messages(ranking, order, prompts, options.seed)
    length = sum(len(message["content"]) for message in messages)
    if length > options.longest:
        raise RowError(
            "prompt", f"{length} characters", f"at most {options.longest}", "prompt too long"
        )
    fields = {"structured_outputs": only_a_list(len(order))} if options.guided else {}
    reply = await judge.ask(messages, options.seed, **fields)
    try:
        # The judge ranks labels; `order` says which answer was shown under each.
        return [order[label] for label in parse_ranking(reply.text, len(order))]
    except RowError as error:
        if reply.cut:
            error.reason = "reply cut before its list"
        raise
