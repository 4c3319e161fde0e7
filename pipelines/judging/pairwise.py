"""`rayward judge pairwise MODEL BASELINE`: which of two models' answers a judge prefers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.judging.rules import RULES
from rayward.pipelines.data_tools.feedback import add_models
from rayward.pipelines.judging.reading import add_questions
from rayward.pipelines.judging.scorers import add_scorers

if TYPE_CHECKING:
    from rayward.data.judging.pairs import Pair
    from rayward.pipelines.judging.asking import Asking

LEAST_UNREADABLE = 10
AT_ONCE = 32


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "pairwise", help="have a judge compare the answers of two models, in both orders"
    )
    parser.add_argument("model", metavar="A", help="answers of the model that is judged")
    parser.add_argument("baseline", metavar="B", help="answers of the one that it is compared with")
    parser.add_argument(
        "--rules",
        choices=tuple(RULES),
        default="vicuna",
        help="whose way of judging: vicuna two scores in both orders, faireval three samples of "
        "these, ultralm one order that is drawn, alpaca_eval a ranking, alpaca_eval_2 the "
        "probability of a name, mt_bench letters on both turns, arena_hard five grades (default "
        "vicuna)",
    )
    add_questions(parser)
    parser.add_argument(
        "--orders", choices=("both", "random"), help="in place of what the rules say"
    )
    parser.add_argument(
        "--samples", type=int, metavar="K", help="reviews of each order (default: the rules')"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts in place of ours: a judge_prompts.jsonl of FastChat, Vicuna's prompt.jsonl, "
        "or a prompt.txt of AlpacaEval",
    )
    add_asking(parser)
    add_scorers(parser)
    parser.set_defaults(run_command=_run)


def add_asking(parser: argparse.ArgumentParser) -> None:
    """Declare what all commands that ask a judge take."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for what is made"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of orders and samples (default 0)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="X",
        help="most that all replies may cost, at --judge-price; stops before it is passed",
    )
    parser.add_argument(
        "--unreadable",
        type=int,
        metavar="N",
        help="replies that may not be what was asked for, before it stops (default: a tenth, and "
        f"at least {LEAST_UNREADABLE})",
    )
    add_models(
        parser,
        {"judge": {}},
        AT_ONCE,
        "NAME@http://HOST:PORT/v1, or a folder, which vLLM serves; of a reward model, which scores "
        "answers; or MODULE:FUNCTION, as scoring.sources has it",
    )


def _run(options: argparse.Namespace) -> int:
    from rayward.data.judging.pairs import pairs
    from rayward.pipelines.data_tools.feedback import check_models
    from rayward.pipelines.judging.asking import open_cache
    from rayward.pipelines.judging.options import tell_left_out
    from rayward.pipelines.judging.reading import answers_of, questions_of
    from rayward.pipelines.judging.scorers import is_function, is_reward_model
    from rayward.pipelines.judging.verdict_files import close
    from rayward.pipelines.rows.left_out import LeftOut

    check_models(options)
    if options.samples is not None and options.samples < 1:
        raise ValueError(f"--samples is {options.samples}, expected at least 1")
    _refuse_overwriting(options)
    left_out = LeftOut()
    model = answers_of(options.model, left_out)
    baseline = answers_of(options.baseline, left_out)
    questions = questions_of(options, options.baseline, left_out)
    made, lacking = pairs(questions, baseline, model)
    tell_left_out(left_out)
    with ExitStack() as stack:
        cache = open_cache(stack, options.out / "cache.jsonl")
        names = (baseline.model, model.model)
        if is_function(options.judge) or is_reward_model(options.judge):
            from rayward.pipelines.judging.by_score import verdicts_by_score

            rows, account = verdicts_by_score(options, made, names, cache)
        else:
            rows, account = _verdicts(options, made, names, cache, stack)
        account |= {"lacking": lacking, "left_out": dict(left_out)}
        return close(options, rows, account)


def _refuse_overwriting(options: argparse.Namespace) -> None:
    from rayward.data.formats.files.overwriting import refuse_overwriting

    made = [options.out / name for name in ("verdicts.jsonl", "summary.json", "cache.jsonl")]
    given = (options.model, options.baseline, options.questions, options.references)
    refuse_overwriting(made, given)


def _verdicts(
    options: argparse.Namespace,
    made: Sequence[Pair],
    names: tuple[str, str],
    cache: Any,
    stack: ExitStack,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The verdicts of a language model, and the account of what it was asked."""
    from rayward.pipelines.data_tools.endpoint import models
    from rayward.pipelines.judging.asking import Asking, identity_of
    from rayward.pipelines.judging.comparing import Comparing

    comparing = Comparing(options, made, names)
    comparing.tell()
    options.judge_request = {**comparing.rules.request, **options.judge_request}
    (judge,) = stack.enter_context(models(options, "judge"))
    allowed = allowed_unreadable(options, len(comparing.requests))
    asking = Asking(
        cache, judge, identity_of(options.judge), options, comparing.is_readable, allowed
    )
    ask_all(asking, comparing.requests, allowed)
    rows = comparing.rows(asking, judge.name)
    return rows, account_of(asking, comparing.requests) | comparing.settings


def allowed_unreadable(options: argparse.Namespace, count: int) -> int:
    """How many of so many replies may be something else than what was asked for."""
    if options.unreadable is None:
        return max(LEAST_UNREADABLE, count // 10)
    if options.unreadable < 0:
        raise ValueError(f"--unreadable is {options.unreadable}, expected 0 or more")
    return int(options.unreadable)


def ask_all(asking: Asking, requests: Sequence[Any], allowed: int) -> None:
    """Ask for what is missing, and tell how much that is."""
    there = sum(asking.key(request) in asking.cache.places for request in requests)
    print(
        f"{len(requests)} replies of {asking.model.name}, {there} of them in the cache; up to "
        f"{allowed} may be unreadable",
        flush=True,
    )
    asking.ask(requests)


def account_of(asking: Asking, requests: Sequence[Any]) -> dict[str, Any]:
    """What was asked and what it cost; "stopped" says why not all is there."""
    account = {"asked": asking.account(requests), "stopped": asking.stopped}
    return account | {"refusals": asking.refused[:20]}
