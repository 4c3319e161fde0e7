"""`rayward judge single ANSWERS...`: a judge grades each answer by itself, as in MT-Bench.

The first and the second turn are graded each, math, reasoning and coding beside a reference answer.
What is written are FastChat's rows of model_judgment/JUDGE_single.jsonl, with -1 where a reply has
no rating.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.options import add_asking
from rayward.pipelines.judging.reading import add_questions

if TYPE_CHECKING:
    from rayward.data.judging.answers import Answers
    from rayward.data.judging.prompts import JudgePrompt
    from rayward.data.judging.questions import Question
    from rayward.pipelines.judging.asking.asking import Asking
    from rayward.pipelines.judging.asking.budget import Request

REQUEST = {"temperature": 0.0, "max_tokens": 2048}
NO_RATING = -1


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "single", help="have a judge rate each answer from 1 to 10, as in MT-Bench"
    )
    parser.add_argument(
        "answers", nargs="+", metavar="ANSWERS", help="files of answers, one a model"
    )
    add_questions(parser)
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="a judge_prompts.jsonl in place of ours"
    )
    add_asking(parser, {"judge": REQUEST}, "NAME@http://HOST:PORT/v1, or a folder, for vLLM")
    parser.set_defaults(run_command=_run)


@dataclass(frozen=True, slots=True)
class Graded:
    """A turn (from 0) of a question that a model answered, and what is asked about it."""

    question: Question
    turn: int
    model: str
    prompt: JudgePrompt
    request: Request


def _run(options: argparse.Namespace) -> int:
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.judging.replies import rating
    from rayward.data.model_files.hub_models import fetched, is_hub_name
    from rayward.pipelines.data_tools.feedback import check_models
    from rayward.pipelines.judging.asking.account import account_of, allowed_unreadable, ask_all
    from rayward.pipelines.judging.asking.asking import Asking, open_cache
    from rayward.pipelines.judging.options import tell_left_out
    from rayward.pipelines.judging.reading import answers_of, questions_of
    from rayward.pipelines.rows.left_out import LeftOut

    check_models(options)
    if is_hub_name(options.judge):
        options.judge = fetched(options.judge)
    left_out = LeftOut()
    of_models = [answers_of(path, left_out) for path in options.answers]
    names = Counter(answers.model for answers in of_models)
    if twice := [name for name, count in names.items() if count > 1]:
        files = [answers.path for answers in of_models if answers.model == twice[0]]
        raise ValueError(
            f"{' and '.join(files)}: both are answers of {twice[0]}, whose ratings could not be "
            "told apart; give the models names of their own"
        )
    questions = questions_of(options, options.answers[0], left_out)
    tell_left_out(left_out)
    graded, lacking = grades(options, questions, of_models)
    prompt_of = {id(one.request): one.prompt for one in graded}

    def is_readable(request: Request, reply: Mapping[str, Any]) -> bool:
        return rating(reply["text"], prompt_of[id(request)].scale) is not None

    with ExitStack() as stack:
        cache = open_cache(stack, options.out / "cache.jsonl")
        requests = [one.request for one in graded]
        allowed = allowed_unreadable(options, len(requests))
        asking = Asking(cache, options, "judge", stack, is_readable, allowed)
        out = options.out / f"{_file_name(asking.shown)}_single.jsonl"
        refuse_overwriting([out], [*options.answers, options.questions, options.references])
        ask_all(asking, requests, allowed)
        rows = [row for one in graded if (row := _row(one, asking))]
        account = account_of(asking, requests) | {"lacking": lacking, "left_out": dict(left_out)}
    return _close(options, out, rows, account)


def grades(
    options: argparse.Namespace, questions: Sequence[Question], of_models: Sequence[Answers]
) -> tuple[list[Graded], list[str]]:
    """All turns to grade, by model, and those without an answer. ValueError: there is none."""
    from rayward.data.judging.prompts import (
        choose,
        has_reference,
        load_prompts,
        needs_reference,
        single_fields,
    )
    from rayward.pipelines.judging.asking.budget import Request

    prompts = load_prompts(options.prompts)
    graded, lacking, alone = list[Graded](), list[str](), Counter[str]()
    for answers in of_models:
        for question, said in zip(questions, answers.to(questions), strict=True):
            for turn in range(len(question.turns)):
                if len(said) <= turn:
                    lacking.append(
                        f"question {question.id}, turn {turn + 1}: no answer of {answers.model}"
                    )
                    continue
                prompt = choose(prompts, "single", ("[[rating]]",), question, turn)
                if prompt is None:
                    alone[f"there is no prompt for turn {turn + 1}"] += 1
                    continue
                if needs_reference(question) and not has_reference(question, turn):
                    alone["graded without the reference answer that its category needs"] += 1
                messages = prompt.messages(single_fields(question, said, turn))
                place = {"question_id": question.id, "turn": turn + 1, "model": answers.model}
                graded.append(
                    Graded(question, turn, answers.model, prompt, Request(messages, place))
                )
    for what, count in alone.items():
        print(f"{count} answers: {what}")
    if not graded:
        first = lacking[0] if lacking else "there is no prompt for them"
        raise ValueError(f"{', '.join(options.answers)}: no answer can be graded; {first}")
    return graded, lacking


def _file_name(judge: str) -> str:
    """A judge's name without what would be a folder."""
    return judge.replace("/", "_")


def _row(one: Graded, asking: Asking) -> dict[str, Any] | None:
    """FastChat's row of a grade; None where the judge has not answered."""
    from rayward.data.judging.replies import rating

    reply = asking.reply(one.request)
    if reply is None:
        return None
    score = rating(reply["text"], one.prompt.scale)
    return {
        "question_id": one.question.id,
        "model": one.model,
        "judge": [asking.shown, one.prompt.name],
        "user_prompt": one.request.prompt[-1]["content"],
        "judgment": reply["text"],
        "score": NO_RATING if score is None else score,
        "turn": one.turn + 1,
        # Of the reply, so that a command that is repeated writes the same file.
        "tstamp": reply["time"],
        "category": one.question.category,
    }


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean scores of each model: first turn, second turn, and all rows; FastChat's three numbers.

    Rows without a rating are left out of them.
    """
    summary = []
    for model in dict.fromkeys(row["model"] for row in rows):
        of_model = [row for row in rows if row["model"] == model]
        read = [row for row in of_model if row["score"] != NO_RATING]
        turns = {turn: [row for row in read if row["turn"] == turn] for turn in (1, 2)}
        categories = dict.fromkeys(row["category"] for row in read)
        summary.append(
            {
                "model": model,
                "first": _mean(turns[1]),
                "second": _mean(turns[2]),
                "average": _mean(read),
                "graded": len(of_model),
                "unreadable": len(of_model) - len(read),
                "by_category": {
                    name: _mean([row for row in read if row["category"] == name])
                    for name in categories
                },
            }
        )
    return summary


def _mean(rows: Sequence[dict[str, Any]]) -> float | None:
    return sum(row["score"] for row in rows) / len(rows) if rows else None


def _close(
    options: argparse.Namespace, out: Path, rows: list[dict[str, Any]], account: dict[str, Any]
) -> int:
    """Write the rows and the account, and print the scores; 1 where grades are missing."""
    from rayward.data.formats.files.outputs import open_output
    from rayward.pipelines.judging.asking.account import tell_account
    from rayward.pipelines.run.files import write_json
    from rayward.pipelines.run.metrics import table

    with open_output(out) as file:
        for row in rows:
            file.write(row)
    summary = summarize(rows)
    write_json(options.out / "summary.json", {"models": summary, **account})
    names = ("model", "first", "second", "average", "graded", "unreadable")
    lines = [tuple("-" if one[name] is None else one[name] for name in names) for one in summary]
    table(f"ratings by {rows[0]['judge'][0]}" if rows else "no rating", lines, names)
    return tell_account(account, out)
