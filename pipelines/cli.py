"""The `rayward` command.

Heavy imports stay inside the commands that need them, so help and errors come at once; a test holds
`--help` to a second, and a dry run to no torch and no Ray.
"""

from __future__ import annotations

import argparse
import io
import os
import select
import signal
import sys
import traceback
from pathlib import Path

from rayward.configs.stages import STAGES
from rayward.pipelines.cluster_tools import kube, submit
from rayward.pipelines.data_tools import check, clean, convert, rank, render, simulate
from rayward.pipelines.data_tools import map as map_command
from rayward.pipelines.judging import (
    agreement,
    answers,
    board,
    page,
    pairwise,
    scores,
    single,
    tasks,
    winrate,
)
from rayward.pipelines.model_tools import doctor, extend, init, reward_eval, reward_serve

COMMANDS = {
    "prepare": "read or generate the data, account for every row, make the tokenizer",
    "sft": "supervised fine-tuning of the base model",
    "reward": "train and measure the reward model",
    "sample": "rejection sampling: draw answers, keep the best, fine-tune on them",
    "dpo": (
        "direct preference optimization, from rankings to a policy (only where the config has a "
        "dpo section)"
    ),
    "rl": "online RL: PPO, APA, AWR, RLOO, GRPO, Dr. GRPO, GSPO, CISPO, REINFORCE++",
    "evaluate": "win rates against SFT on held-out prompts",
    "publish": "serve the chosen model on an OpenAI-compatible endpoint",
}

# Each has an `add(actions)` that declares its parsers; none imports anything heavy before it runs.
MODEL_COMMANDS = (init, doctor, extend, reward_eval, reward_serve)
CLUSTER_COMMANDS = (submit, kube)
DATA_COMMANDS = (convert, check, render, clean, map_command, simulate, rank)
JUDGE_COMMANDS = (answers, pairwise, single, tasks, winrate, scores, agreement, page, board)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; the exit status: 0 done, 1 failed, 2 a mistake in what it was given."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows "?" in its place: no reason to end a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            return _main(arguments)
        finally:
            # Here, and not as the interpreter ends, where a closed pipe could not be caught.
            if sys.stdout:
                sys.stdout.flush()
    except OSError as error:
        # Not every broken pipe is ours: that of a connection is an error to be told.
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 128 + signal.SIGPIPE  # as a shell has it
        return _failed(error)


def _main(arguments: list[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    # `ray job stop` and Kubernetes end a run like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from rayward.configs.load import ConfigError
    from rayward.pipelines.interface import quiet

    quiet()
    try:
        return int(options.run_command(options))
    except ConfigError as error:
        print(f"rayward: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rayward: interrupted; run the same command again to go on", file=sys.stderr)
        return 130  # 128 + SIGINT, as a shell has it
    except BrokenPipeError:
        raise
    except Exception as error:
        # Of a run they may be of a worker or a disk.
        is_run = options.run_command is _align
        return _failed(error, status=2 if not is_run and _of_given(error) else 1)


def _of_given(error: Exception) -> bool:
    """Whether a command without a run stops at what its command line named: a file that is not
    there, or what our own checks refuse. (A ValueError of a library is a fault.)
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = str(frames[-1][0].f_globals.get("__name__")).startswith("rayward.")
    return type(error) is FileNotFoundError or (type(error) is ValueError and ours)


def _failed(error: Exception, status: int = 1) -> int:
    """Tell what ended a command; the exit status."""
    if os.environ.get("RAYWARD_TRACEBACK"):
        raise error
    from rayward.pipelines.run.errors import explain

    print(f"rayward: {explain(error)}", file=sys.stderr)
    return status


def _nobody_reads() -> bool:
    """Whether what is printed has no reader any more, as after `| head`.

    From then on it is dropped, so the next time nothing is found to be closed.
    """
    gone = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            gone = True
            # The interpreter flushes once more as it ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return gone


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rayward",
        description="From a base language model to an aligned chat model behind an HTTP endpoint.",
        epilog=(
            "CONFIG is a YAML file or the name of a preset (rayward presets lists them). "
            "RAYWARD_TRACEBACK=1 shows where an error came from, RAYWARD_WORKER_LOGS=1 what "
            "Ray's workers print."
        ),
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    align = commands.add_parser("align", help="run all stages, or those that are missing")
    _add_run_options(align)
    align.add_argument("--stages", metavar="A,B", help=f"only these of {','.join(STAGES)}")
    align.set_defaults(run_command=_align)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        _add_run_options(command)
        command.set_defaults(run_command=_align, stages=name)
        if name == "rl":
            command.add_argument(
                "--replay", type=Path, metavar="DIR", help="train on the rollouts in DIR (parquet)"
            )
            command.add_argument(
                "--rollout-only",
                type=Path,
                metavar="DIR",
                help="write the SFT model's answers to DIR, train nothing",
            )
    chat = commands.add_parser("chat", help="talk to a published model from the terminal")
    chat.add_argument(
        "url", help="base URL that publish printed, for example http://127.0.0.1:8000/v1"
    )
    chat.add_argument("--model", help="model name in the API; by default the first one it lists")
    chat.add_argument("--system", help="system message")
    chat.add_argument(
        "--temperature", type=float, default=0.7, help="sampling temperature (default 0.7)"
    )
    chat.add_argument("--max-tokens", type=int, help="longest answer, in tokens")
    chat.set_defaults(run_command=_chat)
    report = commands.add_parser("report", help="write report.html from what a run has so far")
    report.add_argument("run", type=Path, help="run folder")
    report.set_defaults(run_command=_report)
    for module in (*MODEL_COMMANDS, *CLUSTER_COMMANDS):
        module.add(commands)
    data = commands.add_parser("data", help="work on data files: see rayward data --help")
    actions = data.add_subparsers(title="actions", required=True, metavar="ACTION")
    for module in DATA_COMMANDS:
        module.add(actions)
    judge = commands.add_parser(
        "judge", help="judge answers, and make numbers of verdicts: see rayward judge --help"
    )
    actions = judge.add_subparsers(title="actions", required=True, metavar="ACTION")
    for module in JUDGE_COMMANDS:
        module.add(actions)
    presets = commands.add_parser("presets", help="list the presets in configs/")
    presets.set_defaults(run_command=_presets)
    settings = commands.add_parser(
        "settings", help="explain every setting: what it takes, default, meaning"
    )
    settings.add_argument(
        "name", nargs="?", metavar="NAME", help="only this one or this section, as rl.apa"
    )
    settings.set_defaults(run_command=_settings)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file or preset name")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run folder (default runs/NAME)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override a setting; repeatable"
    )
    parser.add_argument(
        "--redo",
        metavar="A,B",
        help="make these stages (or rl/ppo and such) and what follows again",
    )
    parser.add_argument(
        "--allow-partial",
        metavar="A,B",
        help="go on from a checkpoint that lacks these parts, which begin anew",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--keep", action="store_true", help="publish: serve until interrupted")


def _align(options: argparse.Namespace) -> int:
    from rayward.configs.load import load
    from rayward.data.model_files.hub_models import trust
    from rayward.pipelines.align import align, plan_text
    from rayward.pipelines.interface import run_folder
    from rayward.pipelines.parts import parse_partial, parse_redo, parse_stages

    config = load(options.config, options.set)
    trust(config.model.trust_remote_code)
    folder = run_folder(config, options.run)
    stages, redo = parse_stages(options.stages), parse_redo(options.redo)
    partial = parse_partial(options.allow_partial)
    if options.dry_run:
        from rayward.pipelines.preflight import check_models, preflight
        from rayward.pipelines.run.folder import Run
        from rayward.pipelines.run.models_named import pinned

        # The plan first: it is of use also where the checks below refuse the command.
        print(plan_text(config, folder, stages, redo), flush=True)
        looked_at = Run(folder, config)
        pinned(looked_at)
        made = preflight(looked_at, stages, redo, options.keep, getattr(options, "replay", None))
        # A dry run fetches nothing, so hub names that the cache lacks cannot be looked at.
        check_models(looked_at, made, fetched=False)
        # Asking a cluster needs Ray, which a plan without one does without.
        if config.cluster.address or os.environ.get("RAY_ADDRESS"):
            from rayward.pipelines.cluster_tools.where import where_text

            print(where_text(config, stages))
        return 0
    if rollouts := getattr(options, "rollout_only", None):
        from rayward.pipelines.rl.rollout_only import rollout_only
        from rayward.pipelines.run.folder import Run
        from rayward.pipelines.run.machine import on_machine
        from rayward.pipelines.run.models_named import fetch

        fetch(Run(folder, config))
        print(f"{rollouts}: {rollout_only(on_machine(Run(folder, config), 'rl'), rollouts)}")
        return 0
    replay = getattr(options, "replay", None)
    align(config, folder, stages, redo, options.keep, replay, partial)
    return 0


def _chat(options: argparse.Namespace) -> int:
    from rayward.pipelines.model_tools.chat import chat

    return chat(options.url, options.model, options.system, options.temperature, options.max_tokens)


def _report(options: argparse.Namespace) -> int:
    from rayward.configs.load import load
    from rayward.pipelines.report.report import write_report
    from rayward.pipelines.run.folder import Run

    print(write_report(Run(options.run, load(str(options.run / "config.yaml")))))
    return 0


def _presets(_: argparse.Namespace) -> int:
    from rayward.configs.load import PRESETS

    for path in sorted(PRESETS.glob("*.yaml")):
        # Each preset begins with a comment that says what it is.
        title = path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        print(f"{path.stem:<16} {title}")
    return 0


def _settings(options: argparse.Namespace) -> int:
    from rayward.configs.reference import explain_settings

    print(explain_settings(options.name))
    return 0


def command() -> None:
    """The command as a process of its own."""
    status = main()
    # All is done: a signal that comes while the interpreter ends would only make it stumble.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


if __name__ == "__main__":
    command()
