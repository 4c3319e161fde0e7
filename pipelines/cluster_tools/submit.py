"""`rayward submit`: a run as a job on a Ray cluster, and following it from here."""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayward.cluster.jobs import Jobs
    from rayward.configs.schema import Config
    from rayward.configs.sections.machines import Cluster

CONFIG = "config.yaml"
STOP_WAIT_S = "60"
"""Time that a stopped job has to end by itself; Ray's own is 3 s."""
OF_THIS_MACHINE = ("HF_HOME",)
"""Forwarded variables that name what a machine has: there they are the cluster's."""
OURS = ("RAYWARD_TRACEBACK", "RAYWARD_WORKER_LOGS")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = commands.add_parser("submit", help="run the stages as a job on a Ray cluster")
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file or preset name")
    parser.add_argument(
        "--run",
        metavar="DIR",
        help="run folder, absolute, that all nodes of the cluster see",
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        help="of the cluster, http://HOST:8265 (default RAY_API_SERVER_ADDRESS, RAY_ADDRESS or "
        "cluster.address)",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override a setting; repeatable"
    )
    parser.add_argument("--stages", metavar="A,B", help="only these stages")
    parser.add_argument(
        "--redo", metavar="A,B", help="make these stages and what follows again, as align has it"
    )
    parser.add_argument("--keep", action="store_true", help="publish: serve until stopped")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="give the job this environment variable, of here or with this value; repeatable",
    )
    parser.add_argument(
        "--no-follow", action="store_true", help="hand the job over and do not wait for it"
    )
    parser.add_argument(
        "--attach", metavar="JOB_ID", help="follow a job that was submitted before; no CONFIG"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be handed over, and stop"
    )
    parser.set_defaults(run_command=_submit)


def _submit(options: argparse.Namespace) -> int:
    from rayward.configs.load import ConfigError, load
    from rayward.pipelines.parts import parse_redo, parse_stages

    if (options.config is None) == (options.attach is None):
        raise ConfigError("rayward submit takes either CONFIG or --attach JOB_ID")
    if options.attach:
        return _follow(_jobs(options.address, None), options.attach)
    config = load(options.config, options.set)
    # Mistakes that need no cluster are told before it is asked.
    parse_stages(options.stages), parse_redo(options.redo)
    folder = run_folder(options.run, config)
    not_there(config)
    command, variables = entrypoint(options, folder), environment(options.env)
    with tempfile.TemporaryDirectory(prefix="rayward-") as temporary:
        files = collect(config, Path(temporary))
        print(f"job:       {command}\nfiles:     {', '.join(files)}")
        print(f"variables: {', '.join(sorted(variables))}", flush=True)
        if options.dry_run:
            return 0
        jobs = _jobs(options.address, config.cluster)
        job_id = jobs.submit(command, config.name, folder, Path(temporary), variables)
    print(f"submitted: {job_id}, to {jobs.url}")
    if options.no_follow:
        print(jobs.again(job_id))
        return 0
    return _follow(jobs, job_id)


def _follow(jobs: Jobs, job_id: str) -> int:
    jobs.find(job_id)
    print(f"following {job_id}; Ctrl-C leaves it at work", flush=True)
    try:
        return jobs.follow(job_id)
    except KeyboardInterrupt:
        print(f"\nrayward: the job goes on; {jobs.again(job_id)}", file=sys.stderr)
        return 130


def _jobs(given: str | None, cluster: Cluster | None) -> Jobs:
    """The jobs of the cluster that is named first. ConfigError where none is."""
    from rayward.cluster.jobs import Jobs
    from rayward.configs.load import ConfigError

    named = [("--address", given)]
    named += [(name, os.environ.get(name)) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")]
    named += [("cluster.address", cluster.address if cluster else None)]
    for name, address in named:
        if address:
            return Jobs(address, name)
    raise ConfigError(
        "no cluster is named: give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS, "
        "RAY_ADDRESS or cluster.address"
    )


def run_folder(given: str | None, config: Config) -> str:
    """The run's folder on the cluster, as the job is told it. ConfigError unless absolute."""
    from rayward.configs.load import ConfigError

    if not given or not given.startswith("/"):
        raise ConfigError(
            f"the run folder would be {given or f'runs/{config.name}'}, which goes with the job: "
            "give --run an absolute path on storage that all nodes of the cluster see"
        )
    # Two slashes at its beginning would stay, and be another folder's name.
    folder = posixpath.normpath(given).lstrip("/")
    if not folder:
        raise ConfigError(f"--run is {given}, all of the disk: give the run a folder of its own")
    return f"/{folder}"


def entrypoint(options: argparse.Namespace, folder: str) -> str:
    """The job's command: `rayward align` on the config that goes along."""
    words = ["rayward", "align", CONFIG, "--run", folder]
    for name in ("stages", "redo"):
        if value := getattr(options, name):
            words += [f"--{name}", value]
    return shlex.join([*words, "--keep"] if options.keep else words)


def environment(given: list[str]) -> dict[str, str]:
    """The variables that the job gets: few and by name, never all that are set here."""
    from rayward.cluster.connect import FORWARDED_VARIABLES
    from rayward.configs.load import ConfigError

    names = [name for name in FORWARDED_VARIABLES if name not in OF_THIS_MACHINE]
    variables = {name: os.environ[name] for name in (*names, *OURS) if name in os.environ}
    # Ray's process beside the driver reads it there.
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = STOP_WAIT_S
    for text in given:
        name, sign, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ConfigError(f"--env {text}: expected NAME or NAME=VALUE, found the name {name!r}")
        if not sign and name not in os.environ:
            raise ConfigError(f"--env {name}: no such variable is set here; give {name}=VALUE")
        variables[name] = value if sign else os.environ[name]
    return variables


def collect(config: Config, folder: Path) -> list[str]:
    """Write what goes along into a folder: the config, and the small files that it names by a
    relative path. Their names there; ConfigError for one that is not here.
    """
    from rayward.configs.load import dump

    # Which cluster it is, is known there.
    cluster = config.cluster.model_copy(update={"address": None})
    alone = config.model_copy(update={"cluster": cluster})
    (folder / CONFIG).write_text(dump(alone), encoding="utf-8")
    named = sorted(set(_files_named(config)))
    for path in named:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path)
    return [CONFIG, *map(str, named)]


def _files_named(config: Config) -> Iterator[Path]:
    """Modules of reward functions and prompts of judges that are named by a relative path."""
    from rayward.configs.load import ConfigError

    functions = Path(config.scoring.functions)
    for source in config.scoring.sources:
        if source.kind == "function" and not functions.is_absolute():
            for module in source.modules:
                yield from _module(functions, module.split("."))
        if source.prompts and not Path(source.prompts).is_absolute():
            texts = sorted(Path(source.prompts).glob("*.txt"))
            if not texts:
                raise ConfigError(
                    f"prompts of scoring source {source.title}: {source.prompts} has no .txt here"
                )
            yield from texts


def _module(folder: Path, names: list[str]) -> Iterator[Path]:
    """The files of a module: of a package all its code. Nothing where it is an installed one."""
    if (folder / names[0] / "__init__.py").is_file():
        yield from (folder / names[0]).rglob("*.py")
    elif (file := folder.joinpath(*names).with_suffix(".py")).is_file():
        yield file


def not_there(config: Config) -> None:
    """ConfigError with all that the config names by a path which the cluster does not have."""
    from rayward.configs.load import ConfigError
    from rayward.configs.named import named_models
    from rayward.configs.needs import lists_read
    from rayward.data.model_files.hub_models import is_hub_name
    from rayward.pipelines.run.given import files_judged

    wrong: dict[str, None] = {}
    data = config.data
    for name in lists_read(config):
        paths = [source.path for source in getattr(data, name)]
        wrong |= {f"data.root is {data.root}": None for path in paths if _relative(path, data.root)}
    against = data.decontaminate.against if data.decontaminate else ()
    others = [path for path in against if path != "evaluation_prompts"]
    judged = [path for _, path in files_judged(config)]
    if any(_relative(path, data.root) for path in [*others, *judged]):
        wrong[f"data.root is {data.root}"] = None
    for named in named_models(config):
        if not is_hub_name(named.model) and not Path(named.model).is_absolute():
            wrong[f"{named.setting} is {named.model}"] = None
    prompts = [source.prompts for source in config.scoring.sources if source.prompts]
    for path in (config.scoring.functions, *prompts):
        if ".." in Path(path).parts:
            wrong[f"scoring names {path}"] = None
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)}: a path of this machine, and the cluster gets only the "
            "config; copy it to storage that all nodes see, and give its absolute path there"
        )


def _relative(path: str, root: str) -> bool:
    return not path.startswith("hf:") and not (Path(root) / path).is_absolute()
