"""A run's folder: which stages are done, with which settings, and the models in it.

A stage is done when its manifest exists, which `run/stage.py` writes last. Done is not enough to go
on from it: the manifest also says the settings, the fingerprints of the inputs and the digests of
what was given from outside, and each of them must be what it is now.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayward.configs import stages
from rayward.configs.decisive import decisive, without_layout
from rayward.configs.schema import Config
from rayward.data.model_files.hub_models import local
from rayward.pipelines.run import earlier, given
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json

NOT_READ = {"sample": {"reward"}}
"""Inputs that a part of an earlier version may have waited for without reading them."""


@dataclass(frozen=True)
class Run:
    """A run's folder and config. `partial`: parts of checkpoints that may be missing, and begin
    anew.
    """

    folder: Path
    config: Config
    partial: frozenset[str] = frozenset()

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage or part (`rl/ppo`). StageError where there is none."""
        path = self.folder / stage / "manifest.json"
        if not path.is_file():
            raise StageError(
                f"{stage} has not run yet in {self.folder}; run it first: rayward "
                f"{stage.split('/')[0]} CONFIG --run {self.folder}"
            )
        return read_json(path)

    def done(self, stage: str) -> bool:
        # No other file counts: the manifest comes after all of them, so none can be half written.
        return (self.folder / stage / "manifest.json").is_file()

    def state(self, stage: str) -> str:
        """Of a stage with this config: "done", "done with other settings", or "to do"."""
        if not self.done(stage):
            return "to do"
        if self.same(stage, decisive(self.config, stage)):
            return "done"
        return "done with other settings"

    def same(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether a finished stage was made with these settings, and with what is given today; its
        ranks and ZeRO stages may be others.
        """
        kept, settings = (
            without_layout(known) for known in (self.manifest(stage)["settings"], settings)
        )
        # Only the settings that are asked about: an earlier version's manifest may have more.
        # `begin` looks at those.
        if any(kept.get(name) != value for name, value in settings.items() if name != "inputs"):
            return False
        if "inputs" in settings:
            # An input that was only waited for, and is none any more, decided nothing.
            unread = NOT_READ.get(stage, set()) - settings["inputs"].keys()
            inputs = kept.get("inputs", {})
            read = {name: mark for name, mark in inputs.items() if name not in unread}
            if read != settings["inputs"]:
                return False
        return not self.changed_since(stage)

    def changed_since(self, stage: str) -> list[str]:
        """What a stage was given and has changed since; nothing where it has no digests."""
        kept = self.manifest(stage).get("given")
        return given.changed(kept, given.digests(self.config, stage)) if kept else []

    def require(self, stage: str) -> None:
        """Raise StageError unless a stage is done with the settings of this config."""
        self.manifest(stage)
        if self.state(stage) != "done":
            raise self.conflict(stage, decisive(self.config, stage))
        self.require_rows_of_today(stage)

    def require_rows_of_today(self, stage: str) -> None:
        """StageError where an earlier version made the rows of a stage otherwise than this one."""
        tokenizer = self.folder / "prepare" / "tokenizer"
        reason = earlier.outdated(stage, self.manifest(stage), self.config.model, tokenizer)
        if reason:
            raise StageError(
                f"{self.folder / stage} was made by an earlier version: {reason}. Nothing was "
                "overwritten. Make it again, with all that follows from it: rayward align CONFIG "
                f"--redo {stage}"
            )

    def conflict(self, stage: str, settings: Mapping[str, Any]) -> StageError:
        """The error to raise where a stage was made with other settings than `settings`."""
        kept, settings = (
            without_layout(known) for known in (self.manifest(stage)["settings"], settings)
        )
        # Without those that only the manifest has: they are no difference that can be undone.
        kept = {key: value for key, value in kept.items() if key in settings}
        changes = [
            *differences(kept, settings),
            *(f"{name} has changed since" for name in self.changed_since(stage)),
        ]
        hint = ""
        if stage == "prepare" and self.done("sft"):
            hint = f" (--set model.path={self.folder / 'sft' / 'model'} there keeps what sft made)"
        return StageError(
            f"{self.folder / stage} was made with other settings: "
            f"{'; '.join(changes) or 'its settings'}. Nothing was overwritten. Choose another "
            f"folder with --run{hint}, or make it again, with all that follows from it: rayward "
            f"align CONFIG --redo {stage}"
        )

    def model(self, stage: str) -> str:
        """The model folder that a finished stage left."""
        self.manifest(stage)  # raises where it is not finished
        return str(self.folder / stage / "model")

    @property
    def base(self) -> str:
        """Folder of the base model."""
        return local(self.config.model.path or str(self.folder / "prepare" / "base"))

    def named(self, name: str) -> str:
        """Folder of a model by its name: one that the run makes, starts from, or is given."""
        if name == stages.START:
            return self.base
        path = self.config.evaluate.models.get(name)
        return local(path) if path else self.model(stages.MODELS[name])

    @property
    def first(self) -> str:
        """The model that sampling, DPO and RL start from, and that a reward model grows from."""
        return self.named(stages.first_model(self.config))


def model_folder(folder: str | Path, setting: str) -> Path:
    """A folder, or the snapshot of a hub name. StageError where it holds no model."""
    path = Path(local(str(folder)))
    if not (path / "config.json").is_file():
        raise StageError(
            f"{path} holds no model (no config.json); {setting} names a model's folder"
        )
    return path


def differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            name = f"{prefix}.{key}" if prefix else key
            yield from differences(old.get(key), new.get(key), name)
    elif old != new:
        yield f"{prefix} was {old}, now {new}"
