"""`rayward kube render CONFIG --out DIR`: the files that run a config on Kubernetes."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    from rayward.cluster.kube.render import render
    from rayward.cluster.kube.sizes import parse_size
    from rayward.configs.load import load

    config = load(options.config, options.set)
    sizes = [size for size in options.size or SIZES if size != "none"]
    files = render(config, options.out, [parse_size(size) for size in dict.fromkeys(sizes)])
    print(f"{options.out}: {len(files)} files")
    for group in worker_groups(config):
        print(
            f"  workers {group.name}: {group.pods} x {group.cpus} CPU, {group.gpus} GPU, "
            f"{group.memory_gib} GiB"
        )
    print(f"what runs share: kubectl apply -k {options.out}/base")
    print(f"train:           kubectl apply -k {options.out}/train")
    if (options.out / "serve").is_dir():
        print(f"serve:           kubectl apply -k {options.out}/serve")
    return 0
