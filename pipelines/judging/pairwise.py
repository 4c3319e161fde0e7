"""`rayward judge pairwise MODEL BASELINE`: which of two models' answers a judge prefers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.judging.rules import RULES
from rayward.pipelines.judging.asking.scorers import add_scorers
from rayward.pipelines.judging.options import add_asking
from rayward.pipelines.judging.reading import add_questions

if TYPE_CHECKING:
    from rayward.data.judging.pairs import Pair
    from rayward.pipelines.data_tools.ledger import Ledger


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
    add_asking(
        parser,
        {"judge": {}},
        "NAME@http://HOST:PORT/v1, or a folder, which vLLM serves; of a reward model, which scores "
        "answers; or MODULE:FUNCTION, as scoring.sources has it",
    )
    add_scorers(parser)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.judging.pairs import pairs
    from rayward.data.model_files.hub_models import fetched, is_hub_name
    from rayward.pipelines.data_tools.feedback import check_models
    from rayward.pipelines.judging.asking.asking import open_cache
    from rayward.pipelines.judging.asking.scorers import is_function, is_reward_model
    from rayward.pipelines.judging.asking.verdict_files import close
    from rayward.pipelines.judging.options import tell_left_out
    from rayward.pipelines.judging.reading import answers_of, questions_of
    from rayward.pipelines.rows.left_out import LeftOut

    check_models(options)
    if options.samples is not None and options.samples < 1:
        raise ValueError(f"--samples is {options.samples}, expected at least 1")
    _refuse_overwriting(options)
    if is_hub_name(options.judge):
        options.judge = fetched(options.judge)
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
            from rayward.pipelines.judging.asking.by_score import verdicts_by_score

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
    cache: Ledger,
    stack: ExitStack,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The verdicts of a language model, and the account of what it was asked."""
    from rayward.pipelines.judging.asking.account import account_of, allowed_unreadable, ask_all
    from rayward.pipelines.judging.asking.asking import Asking
    from rayward.pipelines.judging.asking.comparing import Comparing

    comparing = Comparing(options, made, names)
    comparing.tell()
    options.judge_request = {**comparing.rules.request, **options.judge_request}
    allowed = allowed_unreadable(options, len(comparing.requests))
    asking = Asking(cache, options, "judge", stack, comparing.is_readable, allowed)
    ask_all(asking, comparing.requests, allowed)
    rows = comparing.rows(asking, asking.shown)
    return rows, account_of(asking, comparing.requests) | comparing.settings
