"""YAML plus `--set a.b=c` overrides as a Config; mistakes are told by file, line and field."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rayward.configs.checks import checked
from rayward.configs.schema import STAGE_SECTIONS, Config

PRESETS = Path(__file__).parent


class ConfigError(ValueError):
    """A mistake in a config; the message names the file, the line, the field and the fix."""


def find(name: str) -> Path:
    """The YAML file of `name`: a path, or the name of a preset in configs/. Raises ConfigError."""
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    path = Path(name)
    if path.is_file():
        return path
    preset = presets.get(path.stem)
    if preset and (path.suffix in ("", ".yaml")) and path.parent.name in ("", "configs"):
        return preset
    raise ConfigError(f"{name}: no such file, and no such preset; presets: {', '.join(presets)}")


def load(name: str, overrides: Sequence[str] = ()) -> Config:
    """Config of a YAML file or preset, with `a.b=value` overrides (of YAML). Raises ConfigError."""
    path = find(name)
    text = path.read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text) or {}
        # The values know no lines, and the nodes no types: hence the text is read twice.
        node = yaml.compose(text)
        lines, empty = _lines(node), _empty(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}, {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections like `model:`, found {type(values).__name__}")
    origin = {key: f"{path}:{line}" for key, line in lines.items()}
    for override in overrides:
        key, sign, value = override.partition("=")
        if not sign:
            raise ConfigError(
                f"--set {override}: expected key=value, for example --set rl.iterations=10"
            )
        keys = tuple(key.strip().split("."))
        given = _parse(value, override)
        null = keys[0] in values and values[keys[0]] is None and keys[0] not in empty
        if keys[0] in STAGE_SECTIONS and len(keys) > 1 and null:
            raise ConfigError(
                f"--set {override}: {origin.get(keys[:1], path)} says {keys[0]}: null, which "
                f"leaves the stage out; --set {keys[0]}={{}} before it gives it the defaults"
            )
        if len(keys) == 1 and keys[0] in STAGE_SECTIONS and not value.strip():
            raise ConfigError(
                f"--set {override} gives nothing: null leaves the stage out, {{}} is its defaults"
            )
        _set(values, keys, given, override)
        origin[keys] = f"--set {override}"
    for stage in STAGE_SECTIONS:
        if stage in empty and values[stage] is None:
            raise ConfigError(
                f"{origin[(stage,)]}: {stage} is empty: write `{stage}: {{}}` for its defaults or "
                f"`{stage}: null` to leave the stage out"
            )
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        messages = [_explain(item, origin, path) for item in _deepest(error.errors())]
        messages += [f"{path}: {line}" for line in _beside(values, error.errors())]
        raise ConfigError("\n".join(messages)) from None
    try:
        return checked(config)
    except ValueError as error:
        raise ConfigError(
            "\n".join(f"{path}: {line}" for line in str(error).splitlines())
        ) from None


def _beside(values: dict, mistakes: Sequence[Any]) -> list[str]:
    """What does not fit together where the fields with mistakes are taken away.

    Sections are held against each other only once every field is right, so one mistyped number
    would hide, until it is mended, that a whole list of data is missing.
    """
    left = copy.deepcopy(values)
    # The deepest first: to take away a section before its field would lose the field's place.
    for item in sorted(mistakes, key=lambda item: len(item["loc"]), reverse=True):
        inner: Any = left
        try:
            for key in item["loc"][:-1]:
                inner = inner[key]
            del inner[item["loc"][-1]]
        except (KeyError, IndexError, TypeError):
            return []
    try:
        checked(Config.model_validate(left))
    except ValidationError:
        return []
    except ValueError as error:
        return str(error).splitlines()
    return []


def _deepest(mistakes: Sequence[Any]) -> list[Any]:
    """Without what follows from a mistake further down: a list with a wrong item is "too short"."""
    places = [item["loc"] for item in mistakes]
    return [
        item
        for item in mistakes
        if item["type"] != "too_short"
        or not any(
            len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"]
            for place in places
        )
    ]


def dump(config: Config) -> str:
    """The config as YAML with every field spelled out; `load` reads it back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def fingerprint(*parts: Any) -> str:
    """Stable short hash of config sections and plain values."""
    plain = [
        part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def _parse(value: str, override: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: {value!r} is not valid YAML: {str(error).splitlines()[0]}"
        ) from None


def _set(values: dict, keys: tuple[str, ...], value: Any, override: str) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise ConfigError(
                f"--set {override}: {'.'.join(keys[: depth + 1])} is a value, not a section"
            )
        values = inner
    values[keys[-1]] = value


def _lines(node: yaml.Node | None, prefix: tuple = ()) -> dict[tuple, int]:
    """1-based line of every key and list item of a YAML document, by its path."""
    lines: dict[tuple, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, key.value)
            # YAML's loader takes the last of two equal keys without a word.
            if path in lines:
                raise ConfigError(
                    f"line {key.start_mark.line + 1}: {'.'.join(map(str, path))} stands in line "
                    f"{lines[path]} already"
                )
            lines[path] = key.start_mark.line + 1
            lines |= _lines(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*prefix, index)] = value.start_mark.line + 1
            lines |= _lines(value, (*prefix, index))
    return lines


def _empty(node: yaml.Node | None) -> set[str]:
    """Keys of the top level without any value, as where all that stood below is a comment."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {
        key.value for key, value in pairs if isinstance(value, yaml.ScalarNode) and not value.value
    }


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The Section class inside an annotation such as `Scratch | None` or `tuple[Source, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (section := section_of(inner)) is not None:
            return section
    return None


def _explain(item: Any, origin: dict[tuple, str], path: Path) -> str:
    """A mistake of pydantic's as a line for people; `origin`: where each key was written."""
    keys = tuple(item["loc"])
    # The nearest key above that was written: a missing one has no line of its own.
    where = next(
        (origin[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in origin), str(path)
    )
    name = ".".join(str(key) for key in keys)
    if item["type"] == "extra_forbidden":
        section: type[BaseModel] | None = Config
        for key in keys[:-1]:
            if section is not None and not isinstance(key, int):
                section = section_of(section.model_fields[key].annotation)
        known = list(section.model_fields) if section else []
        if "." in str(keys[-1]) and str(keys[-1]).split(".")[0] in known:
            first, _, rest = str(keys[-1]).partition(".")
            return (
                f"{where}: {name!r} is one key; in YAML {rest} stands below {first}: `{first}: "
                f"{{{rest}: ...}}`"
            )
        near = difflib.get_close_matches(str(keys[-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {name!r}; {hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return f"{where}: {name} is missing"
    if item["type"] == "value_error":
        return "\n".join(f"{where}: {line}" for line in message.splitlines())
    if len(keys) == 1 and keys[0] in STAGE_SECTIONS and not isinstance(item["input"], dict):
        return (
            f"{where}: {name} is {item['input']!r}: expected settings, or null to leave the stage "
            "out"
        )
    return f"{where}: {name} is {item['input']!r}: {message}"
