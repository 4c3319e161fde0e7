"""`rayward judge answers MODEL --suite NAME`: a model's answers to the questions of an evaluation.

A folder answers in a vLLM server of its own, from token ids that its chat template gives; an
endpoint from messages, in the template that it has. Where a suite has two turns, the second is
asked with the answer to the first before it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rayward.pipelines.judging.options import add_asking

if TYPE_CHECKING:
    from rayward.data.judging.questions import Question
    from rayward.data.judging.suites import Suite
    from rayward.pipelines.judging.asking.talking import Talk, Talking
    from rayward.pipelines.rows.renderer import Renderer


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser("answers", help="a model's answers to the questions of a suite")
    parser.add_argument(
        "model", metavar="MODEL", help="NAME@http://HOST:PORT/v1, a folder or a hub name, for vLLM"
    )
    parser.add_argument(
        "--suite",
        required=True,
        metavar="NAME",
        help="alpaca, vicuna, mt_bench, arena_hard, ifeval, or a file of questions",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="where the suite's questions are (or their file)"
    )
    parser.add_argument("--first", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--name", help="of the model in its answers (default: its own)")
    parser.add_argument("--system", help="what stands before the first turn")
    parser.add_argument(
        "--template",
        default="tokenizer",
        help="a folder's chat template (default: its own; an endpoint has one)",
    )
    add_asking(parser, {"model": {}}, "", judges=False)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.model_files.hub_models import fetched, is_hub_name
    from rayward.pipelines.data_tools.feedback import check_models
    from rayward.pipelines.judging.asking.asking import Asking, open_cache
    from rayward.pipelines.judging.asking.talking import Talk, Talking

    check_models(options)
    if is_hub_name(options.model):
        options.model = fetched(options.model)
    suite, path, questions = _questions(options)
    renderer = _renderer(options)
    talks = [Talk(question) for question in questions]
    with ExitStack() as stack:
        cache = open_cache(stack, options.out / "cache.jsonl")
        asking = Asking(cache, options, "model", stack)
        name = options.name or asking.shown
        out = options.out / suite.out.format(model=name.replace("/", "_"))
        if out.name in ("cache.jsonl", "summary.json") or out.stem in ("", out.suffix, ".jsonl"):
            raise ValueError(
                f"--name {name!r}: the answers would be {out}, which is another file of this "
                "command, or has no name; give another"
            )
        refuse_overwriting([out, options.out / "summary.json"], [path])
        talking = Talking(options, asking, suite, renderer)
        # What the cache has comes first: what it cost counts before anything is asked.
        going = [talk for talk in talks if not talking.go_on(talk)]
        print(f"{len(talks)} questions, {len(talks) - len(going)} of them answered in the cache")
        asking.work(going, talking.finish)
        return _close(options, talking, talks, name, out)


def _questions(options: argparse.Namespace) -> tuple[Suite, str | Path, list[Question]]:
    """The suite, the file of its questions, and these."""
    from rayward.data.judging.annotations import BadRow
    from rayward.data.judging.questions import read_questions
    from rayward.data.judging.suites import (
        OTHER,
        OTHER_IN_TURNS,
        SUITES,
        has_several_turns,
        question_file,
    )
    from rayward.pipelines.judging.options import tell_left_out
    from rayward.pipelines.judging.reading import set_aside, the_first
    from rayward.pipelines.rows.left_out import LeftOut

    bad: list[BadRow] = []
    left_out = LeftOut()
    known = options.suite in SUITES
    if not known and not Path(options.suite).exists() and not options.suite.startswith("hf:"):
        raise ValueError(
            f"--suite is {options.suite!r}: neither a file nor one of {', '.join(SUITES)}"
        )
    path = question_file(options.suite, options.data) if known else options.suite
    questions = the_first(read_questions(path, bad), options.first)
    set_aside(bad, left_out)
    tell_left_out(left_out)
    if known:
        suite = SUITES[options.suite]
    else:
        suite = OTHER_IN_TURNS if has_several_turns(questions) else OTHER
    return suite, path, questions


def _renderer(options: argparse.Namespace) -> Renderer | None:
    """What renders the prompts of a folder; None for an endpoint, which does it itself."""
    from rayward.data.model_files.folder import positions
    from rayward.data.model_files.hub_models import config_of
    from rayward.data.templates.known_ids import assert_known_ids
    from rayward.data.templates.template import find
    from rayward.data.templates.tokenizer import load_tokenizer
    from rayward.pipelines.data_tools.endpoint import is_folder, model_name
    from rayward.pipelines.rows.renderer import Renderer, check_vocabulary

    if not is_folder(options.model):
        model_name(options.model)  # for its ValueError
        if options.template != "tokenizer":
            raise ValueError(
                f"--template {options.template}: an endpoint has a chat template of its own; give "
                "the model's folder to use another"
            )
        return None
    template, tokenizer = find(options.template), load_tokenizer(options.model)
    assert_known_ids(template, tokenizer)
    check_vocabulary(tokenizer, options.model)
    context = positions(config_of(options.model)) or options.context_tokens
    return Renderer(template, tokenizer, min(context, options.context_tokens))


def _close(
    options: argparse.Namespace,
    talking: Talking,
    talks: Sequence[Talk],
    name: str,
    out: Path,
) -> int:
    """Write the answers that are whole, and tell the account; 1 where some are missing."""
    from rayward.data.formats.files.outputs import open_output
    from rayward.data.judging.suites import Written
    from rayward.pipelines.judging.asking.account import account_of, tell_account
    from rayward.pipelines.run.files import write_json

    asking, suite, lacking = talking.asking, talking.suite, []
    cut = thinking = empty = written = 0
    with open_output(out) as file:
        for talk in talks:
            turns = len(talk.question.turns[: suite.turns])
            if len(talk.answers) < turns:
                lacking.append(f"question {talk.question.id}: {talk.why}")
                continue
            written += 1
            cut += any(talk.cut)
            thinking += any(talk.thoughts)
            empty += not all(talk.answers)
            parts = (tuple(talk.answers), tuple(talk.thoughts), tuple(talk.cut))
            file.write(suite.row(Written(talk.question, name, *parts, talk.keys[0], talk.time)))
    account = account_of(asking, talking.requests) | {"lacking": lacking}
    of_folder = asking.identity != ""
    account |= {
        "model": name,
        "suite": options.suite,
        "template": options.template if of_folder else "the endpoint's own",
        "system": options.system,
        "request": options.model_request,
        "seed": options.seed,
        "answered": written,
        "cut": cut,
        "thinking_taken_off": thinking,
        "empty": empty,
    }
    write_json(options.out / "summary.json", account)
    told = f"{written} of {len(talks)} questions answered, template: {account['template']}"
    for count, what in (
        (cut, "were cut at the largest number of tokens"),
        (thinking, "began with thinking, which was taken off"),
        (empty, "are empty"),
    ):
        told += f"; {count} {what}" if count else ""
    print(told)
    return max(tell_account(account, out), int(bool(lacking)))
