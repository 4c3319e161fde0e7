"""The files of `rayward kube render`: folders that `kubectl apply -k` takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from rayward.cluster.kube import shared
from rayward.cluster.kube.names import Object
from rayward.cluster.kube.overlays import addressed, merge_patch
from rayward.cluster.kube.ray_objects import objects
from rayward.cluster.kube.sizes import sized
from rayward.configs.schema import Config

NOTE = "# Written by `rayward kube render`; change the config and render again.\n"
KUSTOMIZATION = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
FOLDERS = ("base", "train", "serve", "interactive", "monitoring", "overlays")


def render(config: Config, out: Path, sizes: Sequence[tuple[int, int]]) -> list[Path]:
    """Write the folders into `out`, and an overlay for each size; the files.

    ValueError where `out` holds something else, a machine is too small, or the config's stages do
    not fit a size; then nothing is written or removed.
    """
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            raise ValueError(f"--out {out}: {place} is no folder")
    before = _written_before(out) if out.exists() else []
    folders = {
        "base": [
            shared.namespace(config),
            shared.account(config),
            *shared.storage(config),
            shared.network_policy(config),
        ],
        "monitoring": shared.monitors(config),
        **objects(config),
    }
    overlays = {
        f"{machines}x{gpus}": objects(sized(config, machines, gpus)) for machines, gpus in sizes
    }
    _remove(before)
    files = [file for name, items in folders.items() for file in _folder(out / name, items)]
    for size, changed in overlays.items():
        for name, items in changed.items():
            files += _overlay(out / "overlays" / size / name, folders[name], items)
    return files


def _written_before(out: Path) -> list[Path]:
    """Files and folders in `out`, a folder before what it holds. ValueError where one is not ours.

    Files are known by their first line: others may have a folder named train, too.
    """
    # By name first, so that a home folder is not read through.
    others = sorted(path for path in out.iterdir() if path.name not in FOLDERS)
    found = [] if others else sorted(out.rglob("*"))
    others = others or [path for path in found if not _is_ours(path)]
    if others:
        raise ValueError(
            f"{out} holds {others[0].relative_to(out)}, which is not of rayward kube render; move "
            "it, or give another folder"
        )
    return found


def _is_ours(path: Path) -> bool:
    # A link may lead to anything.
    if path.is_symlink() or not path.is_file():
        return path.is_dir() and not path.is_symlink()
    note = NOTE.encode()
    with path.open("rb") as file:
        return file.read(len(note)) == note


def _remove(paths: Sequence[Path]) -> None:
    for path in reversed(paths):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()


def file_name(item: Object) -> str:
    """One file an object, by its kind."""
    return f"{item['kind'].lower()}.yaml"


def _folder(folder: Path, items: Sequence[Object]) -> list[Path]:
    names = [file_name(item) for item in items]
    return _write(folder, dict(zip(names, items, strict=True)), {"resources": names})


def _overlay(folder: Path, before: Sequence[Object], after: Sequence[Object]) -> list[Path]:
    patches = {
        file_name(old): addressed(patch, old)
        for old, new in zip(before, after, strict=True)
        if (patch := merge_patch(old, new))
    }
    kustomization = {
        "resources": [f"../../../{folder.name}"],
        "patches": [{"path": name} for name in patches],
    }
    return _write(folder, patches, kustomization)


def _write(folder: Path, items: dict[str, Object], kustomization: Object) -> list[Path]:
    folder.mkdir(parents=True)
    files = []
    for name, item in {**items, "kustomization.yaml": KUSTOMIZATION | kustomization}.items():
        text = yaml.dump(item, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
        (folder / name).write_text(NOTE + text, encoding="utf-8")
        files.append(folder / name)
    return files


class _Dumper(yaml.SafeDumper):
    """YAML without references, and with texts of several lines as they read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
