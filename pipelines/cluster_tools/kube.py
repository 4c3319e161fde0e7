"""`rayward kube render CONFIG --out DIR`: the files that run a config on Kubernetes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayward.configs.schema import Config

SIZES = ("1x8", "8x8")


def add(commands: argparse._SubParsersAction) -> None:
    """Declare the command."""
    kube = commands.add_parser("kube", help="files for Kubernetes: see rayward kube --help")
    actions = kube.add_subparsers(title="actions", required=True, metavar="ACTION")
    parser = actions.add_parser(
        "render", help="write RayJob, RayService and RayCluster of a config, for kubectl apply -k"
    )
    parser.add_argument("config", metavar="CONFIG", help="YAML file or preset name")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="override a setting; repeatable"
    )
    parser.add_argument(
        "--size",
        action="append",
        metavar="NxG",
        help="an overlay with the roles spread over N machines of G GPUs; repeatable (default "
        f"{' and '.join(SIZES)}; none: no overlay)",
    )
    parser.set_defaults(run_command=_render)


def _render(options: argparse.Namespace) -> int:
    from rayward.cluster.kube.groups import worker_groups
    from rayward.cluster.kube.names import run_name
    from rayward.cluster.kube.render import render
    from rayward.cluster.kube.sizes import parse_size
    from rayward.configs.load import load

    config = load(options.config, options.set)
    sizes = [size for size in options.size or SIZES if size != "none"]
    files = render(config, options.out, [parse_size(size) for size in dict.fromkeys(sizes)])
    print(f"{options.out}: {len(files)} files, for {run_name(config)}")
    for group in worker_groups(config):
        print(
            f"  workers {group.name}: {group.pods} x {group.cpus} CPU, {group.gpus} GPU, "
            f"{group.memory_gib} GiB"
        )
    for note in outside(config):
        print(f"note: {note}")
    print(f"what runs share: kubectl apply -k {options.out}/base")
    print(f"train:           kubectl apply -k {options.out}/train")
    if (options.out / "serve").is_dir():
        print(f"serve:           kubectl apply -k {options.out}/serve")
    return 0


def outside(config: Config) -> Iterator[str]:
    """The paths of a config that are on this machine and not on the volume of the pods."""
    from rayward.configs.sections.data import LISTS
    from rayward.data.model_files.hub_models import is_hub_name
    from rayward.pipelines.run.given import files_judged

    mount = config.kube.mount
    models = [("model.path", config.model.path), ("reward.path", config.reward.path)]
    models += [("scoring.sources", path) for s in config.scoring.sources for path in s.paths]
    named = [(name, path) for name, path in models if path and not is_hub_name(path)]
    reads_root = any(getattr(config.data, name) for name in LISTS)
    for setting, path in files_judged(config):
        if Path(path).is_absolute():
            named.append((setting, path))
        else:
            reads_root |= not path.startswith("hf:")
    if reads_root:
        named.append(("data.root", config.data.root))
    if any(source.kind == "function" for source in config.scoring.sources):
        # Modules that are installed are found wherever that folder is.
        ours = ("rayward.", "data.")
        targets = [s.target or "" for s in config.scoring.sources if s.kind == "function"]
        if not all(target.startswith(ours) for target in targets):
            named.append(("scoring.functions", config.scoring.functions))
    for name, path in named:
        if not path.startswith(f"{mount}/"):
            yield (
                f"{name} is {path}, which pods do not have: copy it to the volume and give the "
                f"path there, as --set {name}={mount}/..."
            )
