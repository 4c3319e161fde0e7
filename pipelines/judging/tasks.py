"""`rayward judge tasks MODEL`: MMLU, ARC, TruthfulQA, HellaSwag, GSM8K and IFEval, by lm-eval.

lm-eval makes the prompts, asks a server of vLLM or an endpoint for log-probabilities and answers,
and judges them; here it gets its data, its server, and a memory of what it has done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.feedback import add_serving
from rayward.pipelines.judging.options import AT_ONCE, add_json

if TYPE_CHECKING:
    from rayward.pipelines.judging.harness.plan import Task
    from rayward.pipelines.judging.harness.server import Asked

CONTEXT_TOKENS = 4096  # holds 25 examples of ARC, and 5 of MMLU's longest subjects
WAYS = {"no": ("plain",), "yes": ("chat",), "both": ("plain", "chat")}


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "tasks",
        help="MMLU, ARC, TruthfulQA, HellaSwag, GSM8K and IFEval, by lm-eval",
        description="MMLU 5-shot, ARC 25-shot, TruthfulQA (mc2) 0-shot and HellaSwag 10-shot are "
        "the columns of the Open LLM Leaderboard of 2023; GSM8K is 5-shot, IFEval 0-shot.",
    )
    arg = parser.add_argument
    arg(
        "model",
        metavar="MODEL",
        help="NAME@http://HOST:PORT/v1, a folder, that of a run's stage, or a hub name, for vLLM",
    )
    default = "mmlu,arc,truthfulqa,hellaswag,gsm8k,ifeval"
    arg("--tasks", default=default, metavar="A,B", help=f"what is measured (default {default})")
    arg(
        "--data",
        type=Path,
        metavar="DIR",
        help="local copies of the tasks' data, a folder each as on the hub; then nothing is asked "
        "of a network (default: the hub's)",
    )
    arg("--out", type=Path, required=True, metavar="DIR", help="folder for what is made")
    add_json(parser)
    arg(
        "--chat-template",
        choices=list(WAYS),
        default="no",
        help="whether prompts are rendered by the model's chat template, examples as turns "
        "(default no)",
    )
    arg(
        "--template",
        default="tokenizer",
        help="with --chat-template: another than the tokenizer's own",
    )
    arg("--limit", type=int, metavar="N", help="only the first N items of each task and subject")
    arg("--subjects", metavar="A,B", help="only these of MMLU's 57 subjects")
    arg("--name", help="of the model in its figures (default: its own)")
    arg("--tokenizer", metavar="DIR", help="an endpoint's: a folder or hub name of its model")
    arg(
        "--model-key",
        default="OPENAI_API_KEY",
        metavar="VAR",
        help="environment variable of an endpoint's API key (default OPENAI_API_KEY)",
    )
    arg(
        "--concurrency",
        type=int,
        default=AT_ONCE,
        metavar="N",
        help=f"requests at a time (default {AT_ONCE})",
    )
    arg("--retries", type=int, default=6, metavar="N", help="further tries (default 6)")
    arg("--timeout", type=float, default=300.0, metavar="S", help="seconds for a try (default 300)")
    add_serving(arg, CONTEXT_TOKENS)
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.pipelines.data_tools.feedback import check_models
    from rayward.pipelines.judging.harness.definitions import check_packages, lm_eval_tasks
    from rayward.pipelines.judging.harness.figures_shown import tell
    from rayward.pipelines.judging.harness.plan import chosen, tasks_of
    from rayward.pipelines.judging.harness.server import asked, shown_name
    from rayward.pipelines.run.lock import held

    check_models(options)
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit is {options.limit}, expected 1 or more")
    lm_eval_tasks()
    check_packages(chosen(options))
    tasks = tasks_of(options)
    model = asked(options, options.chat_template != "no")
    options.out.mkdir(parents=True, exist_ok=True)
    with held(options.out):
        made = _made(options, tasks, model)
    return tell(options, options.name or shown_name(options.model, model.name), tasks, made)


def _made(
    options: argparse.Namespace, tasks: list[Task], model: Asked
) -> dict[tuple[str, str], dict[str, Any]]:
    """What is measured by (way, task), after what is missing of it was."""
    from rayward.pipelines.judging.harness.plan import done
    from rayward.pipelines.judging.harness.run import drop_cache, measure

    _prepare(options, tasks)
    parts = _parts(options, tasks, model)
    missing = [part for part in parts if done(Path(part["out"]), part["settings"]) is None]
    print(f"{len(parts)} parts to measure, {len(parts) - len(missing)} of them done", flush=True)
    if missing:
        measure(options, model, missing)
    made = {}
    for part in parts:
        of_part = json.loads(Path(part["out"]).read_text(encoding="utf-8"))
        if "error" not in of_part:
            drop_cache(part)
        made[part["way"], part["task"]] = of_part
    return made


def _prepare(options: argparse.Namespace, tasks: list[Task]) -> None:
    """Leave out what cannot be checked here, which decides what is done already."""
    from rayward.pipelines.judging.harness.plan import has_punkt, leave_out_unchecked

    for task in tasks:
        if task.name == "ifeval" and task.files and not has_punkt(options.data):
            leave_out_unchecked(task, options.out / "definitions" / "ifeval")


def _parts(options: argparse.Namespace, tasks: list[Task], model: Asked) -> list[dict[str, Any]]:
    """What is measured in one go: a task in one way. All that lm-eval needs for it."""
    from importlib.metadata import version

    from rayward.data.feedback.prompt_files import digest
    from rayward.pipelines.judging.harness.plan import define, settings_of, title

    parts: list[dict[str, Any]] = []
    for way in WAYS[options.chat_template]:
        for task in tasks:
            definitions = options.out / "definitions" / task.name
            chat = way == "chat"
            settings = settings_of(
                task,
                model=model.name,
                files=model.identity,
                vllm=options.vllm,
                context_tokens=model.context_tokens or options.context_tokens,
                chat_template=digest(model.chat_template) if chat and model.chat_template else None,
                limit=options.limit,
                lm_eval=version("lm_eval"),
            )
            folder = options.out / way
            parts.append(
                {
                    "title": title(task, chat),
                    "task": task.name,
                    "way": way,
                    "chat": chat,
                    "names": define(task, definitions),
                    "definitions": str(definitions),
                    "settings": settings,
                    "out": str(folder / f"{task.name}.json"),
                    "items": str(folder / f"{task.name}.jsonl"),
                    "cache": str(
                        options.out
                        / "cache"
                        / f"{way}-{task.name}-{digest(json.dumps(settings, sort_keys=True))[:12]}"
                    ),
                }
            )
    return parts
