"""What every setting takes, for people: type, bounds and choices, default and sentence, by section.

All of it is read from the JSON schemas that pydantic makes of the section classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from rayward.configs.load import ConfigError, section_of
from rayward.configs.schema import Config
from rayward.configs.sections.base import StageSection

BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}
"""JSON Schema's words for bounds, and ours."""
TOP = "top level"
"""Heading of what stands in no section."""


@dataclass(frozen=True)
class Setting:
    """A setting that is no section; `name` is dotted."""

    name: str
    takes: str
    required: bool
    default: Any
    sentence: str

    def __str__(self) -> str:
        given = "required" if self.required else f"default {as_yaml(self.default)}"
        return f"  {self.name} ({self.takes}; {given})\n      {self.sentence}"


@dataclass(frozen=True)
class SettingGroup:
    """The settings of one section without those of the sections in it; `given`: where not once and
    by itself, how a config has it.
    """

    name: str
    given: str
    sentence: str
    settings: list[Setting]

    def __str__(self) -> str:
        given = f" ({self.given})" if self.given else ""
        lines = [f"{self.name or TOP}{given}: {self.sentence}", *map(str, self.settings)]
        return "\n".join(lines)


def groups(
    section: type[BaseModel] = Config,
    name: str = "",
    given: str = "",
    sentence: str | None = None,
    default: BaseModel | None = None,
) -> Iterator[SettingGroup]:
    """A section's group, then those of the sections in it, in the order of the schema.

    `default`: the values that the section has where it stands, which may be others than its
    class's.
    """
    prefix = f"{name}." if name else ""
    schemas = _schemas(section)
    settings, inner_groups = [], []
    for key, field in section.model_fields.items():
        value = getattr(default, key) if default is not None else field.default
        described = _one_line(field.description)
        inner = section_of(field.annotation)
        if inner is None:
            required = value is PydanticUndefined
            settings.append(Setting(prefix + key, takes(schemas[key]), required, value, described))
            continue
        values = value if isinstance(value, BaseModel) else None
        form = _form(inner, field.annotation, value)
        inner_groups.append(groups(inner, prefix + key, form, described, values))
    if sentence is None:
        sentence = _one_line(section.__doc__)
    yield SettingGroup(name, given, sentence, settings)
    for group in inner_groups:
        yield from group


def explain_settings(name: str | None = None) -> str:
    """Text about all settings, or about one or a section by its dotted name. ConfigError with the
    nearest name where there is none of this.
    """
    every = list(groups())
    if name is None:
        return "\n\n".join(map(str, every))
    inside = [group for group in every if f"{group.name}.".startswith(f"{name}.")]
    if inside:
        return "\n\n".join(map(str, inside))
    leaves = {setting.name: setting for group in every for setting in group.settings}
    if name in leaves:
        return str(leaves[name])
    known = [*leaves, *(group.name for group in every if group.name)]
    if "." in name:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    else:
        # Without its section: all that end with it, or with what is nearest to it.
        keys = {other.rpartition(".")[2] for other in known}
        key = difflib.get_close_matches(name, sorted(keys), n=1)
        near = [other for other in known if other.rpartition(".")[2] in key]
    sections = ", ".join(group.name for group in every if group.name and "." not in group.name)
    hint = f"did you mean {', '.join(near)}?" if near else f"sections: {sections}"
    raise ConfigError(f"unknown setting {name!r}; {hint}")


def takes(schema: Mapping[str, Any]) -> str:
    """What values a JSON schema allows, as "number above 0 | null"."""
    if "anyOf" in schema:
        return " | ".join(takes(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    match schema["type"]:
        case "boolean":
            return "true | false"
        case "string":
            return "text, not empty" if schema.get("minLength") else "text"
        case "array" if "prefixItems" in schema:
            # The same of each: a pair, say.
            each = " and ".join(dict.fromkeys(map(takes, schema["prefixItems"])))
            return f"list of {len(schema['prefixItems'])}, each {each}"
        case "array":
            empty = ", not empty" if schema.get("minItems") else ""
            return f"list of {takes(schema['items'])}{empty}"
        case "object":
            return f"table from names to {takes(schema['additionalProperties'])}"
        case kind:
            bounds = [f"{word} {schema[key]:.12g}" for key, word in BOUNDS.items() if key in schema]
            return " ".join([kind, " and ".join(bounds)]).strip()


def as_yaml(value: Any) -> str:
    """A value as a config has it, on one line."""
    plain = to_jsonable_python(value)
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    # After a single value YAML ends the document.
    return text.removesuffix("...\n").strip()


@cache
def _schemas(section: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of each field."""
    properties: dict[str, Any] = section.model_json_schema()["properties"]
    return properties


def _form(section: type[BaseModel], annotation: Any, default: Any) -> str:
    """How a config has a section, where that is not once and by itself."""
    if get_origin(annotation) is tuple:
        return "a list"
    if default is PydanticUndefined:
        return "required"
    if default is None or (isinstance(default, StageSection) and default.left_out):
        return "default null"
    return "null leaves it out" if issubclass(section, StageSection) else ""


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
