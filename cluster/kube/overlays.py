"""Overlays of Kustomize: what another size changes, as JSON merge patches (RFC 7386)."""

from __future__ import annotations

from typing import Any

from rayward.cluster.kube.names import Object


def merge_patch(before: Object, after: Object) -> Object:
    """The patch that makes `after` of `before`; a key that goes is null, a list is given whole."""
    patch: Object = {name: None for name in before if name not in after}
    for name, value in after.items():
        old = before.get(name, ...)
        if isinstance(old, dict) and isinstance(value, dict):
            if inner := merge_patch(old, value):
                patch[name] = inner
        elif old is ... or old != value:
            patch[name] = value
    return patch


def addressed(patch: Object, target: Object) -> Object:
    """A patch with what Kustomize finds its object by."""
    names: dict[str, Any] = {name: target["metadata"][name] for name in ("name", "namespace")}
    return {
        "apiVersion": target["apiVersion"],
        "kind": target["kind"],
        **patch,
        "metadata": names | patch.get("metadata", {}),
    }
