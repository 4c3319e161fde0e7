"""What the objects of Kubernetes are held to: KubeRay's definitions with their rules, and those of
Kubernetes itself.
"""

from __future__ import annotations

import functools
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celpy
import kubernetes_validate
import pytest
import yaml
from celpy.adapter import json_to_cel
from jsonschema import Draft7Validator

KUBERAY = Path(__file__).parents[3] / "shared" / "kuberay"
KUBERNETES = "1.33"
RAY_KINDS = ("RayJob", "RayService", "RayCluster")
KEPT = ("type", "enum", "pattern", "minimum", "maximum", "required", "minItems", "maxItems")


def mistakes(item: dict[str, Any]) -> list[str]:
    """What is wrong with an object, as a server would have it; unknown fields are wrong too."""
    if item["kind"] in RAY_KINDS:
        told = [
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
            for error in validator(item["kind"]).iter_errors(item)
        ]
        return told + list(broken_rules(definition(item["kind"]), item))
    try:
        kubernetes_validate.validate(item, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [str(error.message)]
    return []


@functools.cache
def definition(kind: str) -> dict[str, Any]:
    """The OpenAPI schema of a kind's version v1."""
    path = KUBERAY / f"ray.io_{kind.lower()}s.yaml.gz"
    if not path.is_file():
        pytest.skip("../shared/kuberay, KubeRay's custom resource definitions, is absent")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = gzip.decompress(path.read_bytes()).decode()
    versions = yaml.load(text, Loader=loader)["spec"]["versions"]
    (v1,) = [version for version in versions if version["name"] == "v1"]
    return v1["schema"]["openAPIV3Schema"]


@functools.cache
def validator(kind: str) -> Draft7Validator:
    return Draft7Validator(plain(definition(kind)))


def plain(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes as JSON schema that admits no unknown field."""
    told = {name: schema[name] for name in KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        told["type"] = ["integer", "string"]
    if "properties" in schema:
        told["properties"] = {name: plain(inner) for name, inner in schema["properties"].items()}
        # At the top they are in every object, and not all definitions spell out the metadata.
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            told["additionalProperties"] = False
        if set(told["properties"]) >= {"apiVersion", "kind", "metadata"}:
            told["properties"]["metadata"] = {"type": "object", "required": ["name"]}
    elif isinstance(schema.get("additionalProperties"), dict):
        told["additionalProperties"] = plain(schema["additionalProperties"])
    if isinstance(schema.get("items"), dict):
        told["items"] = plain(schema["items"])
    return told


@functools.cache
def compiled(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def broken_rules(schema: dict[str, Any], value: Any, path: str = "") -> Iterator[str]:
    """The CEL rules (x-kubernetes-validations) that a value breaks."""
    for rule in schema.get("x-kubernetes-validations", []):
        # Those of changes compare with what was there before; here all is new.
        if "oldSelf" in rule["rule"]:
            continue
        if not compiled(rule["rule"]).evaluate({"self": json_to_cel(value)}):
            yield f"{path}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for name, inner in value.items():
            below = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(below, dict):
                yield from broken_rules(below, inner, f"{path}.{name}")
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for number, inner in enumerate(value):
            yield from broken_rules(schema["items"], inner, f"{path}[{number}]")
