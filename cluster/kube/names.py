"""Names, labels and places that the objects of a run share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from rayward.cluster.kube import versions
from rayward.configs.schema import Config

Object = dict[str, Any]
"""An object of Kubernetes as plain values."""

CONFIG_FOLDER = "/etc/rayward"
HOME = "/home/rayward"
ACCOUNT = "rayward"
VOLUME = "rayward-shared"
LONGEST = 40
"""KubeRay takes 47 letters and adds words; -config and such follow here."""
DIGEST = 6
"""Hexadecimal digits of it in a name."""


def run_name(config: Config) -> str:
    """The run's name as Kubernetes takes it: small letters, digits and dashes, a letter first.

    One that had to be changed or cut ends with a digest of what it was: my_run and my-run, or two
    that begin alike, would replace each other in the cluster.
    """
    name = re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-")
    if not name[:1].isalpha():
        name = f"run-{name}".strip("-")
    if name == config.name and len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(config.name.encode()).hexdigest()[:DIGEST]
    return f"{name[: LONGEST - DIGEST - 1].rstrip('-')}-{digest}"


def labels(config: Config) -> dict[str, str]:
    """What every object of a run carries, and the network policy looks at."""
    return {"app.kubernetes.io/part-of": "rayward", "app.kubernetes.io/instance": run_name(config)}


def metadata(config: Config, name: str, more: Mapping[str, Any] | None = None) -> Object:
    """Name, namespace and labels of an object."""
    return {
        "name": name,
        "namespace": config.kube.namespace,
        "labels": labels(config) | dict(more or {}),
    }


def image(config: Config, gpus: bool) -> str:
    """The image of this version, as the Dockerfiles in cluster/docker/ make it."""
    return f"{config.kube.image}-{'gpu' if gpus else 'cpu'}:{versions.RAYWARD}"


def run_folder(config: Config) -> str:
    """Where the run lies on the volume."""
    return f"{config.kube.mount}/runs/{config.name}"
