"""Rayward from Python: configs, runs, and what a run's folder holds.

`import rayward` offers `load_config`, `run` and, as `Run`, the class RunReader; this file is loaded
when one of them is first asked for. Torch and Ray come with a run only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayward.configs.checks import checked
from rayward.configs.load import ConfigError, load
from rayward.configs.schema import Config
from rayward.configs.stages import MODELS, STAGES
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, read_jsonl
from rayward.pipelines.run.metrics import flatten

REWARD_MODELS = {"reward": "reward/model", "judge": "reward/judge"}
"""Folders of the models of stage reward; the others stand in `model` of their part."""


def load_config(path_or_preset: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file or preset, with overrides such as "rl.iterations=10".

    A mistake is a ConfigError (a ValueError) with the file, the line and the nearest valid name.
    """
    return load(str(path_or_preset), overrides)


def run(
    config: Config | str | Path,
    folder: str | Path | None = None,
    stages: str | Sequence[str] | None = None,
    redo: str | Sequence[str] = (),
    *,
    keep: bool = False,
    replay: str | Path | None = None,
    allow_partial: str | Sequence[str] = (),
) -> RunReader:
    """What `rayward align` does: run the stages that are missing; the run.

    `folder`: runs/NAME unless given. `stages`: only these, by name; None: all. `redo`: stages, or
    parts such as "rl/ppo", to make again with what follows. `keep`: serve until interrupted.
    `replay`: folder of rollouts that RL trains on. `allow_partial`: parts that a checkpoint may
    lack, such as "optimizer". Raises ConfigError or StageError where that
    cannot be, before anything is removed or started.
    """
    quiet()
    from rayward.data.model_files.hub_models import trust
    from rayward.pipelines.align import align
    from rayward.pipelines.parts import parse_partial, parse_redo, parse_stages

    config = checked(config) if isinstance(config, Config) else load_config(config)
    trust(config.model.trust_remote_code)
    place = run_folder(config, folder)
    made = parse_stages(None if stages is None else _listed(stages))
    rollouts, partial = Path(replay) if replay else None, parse_partial(_listed(allow_partial))
    align(config, place, made, parse_redo(_listed(redo)), keep, rollouts, partial)
    return RunReader(place)


def run_folder(config: Config, folder: str | Path | None) -> Path:
    """A run's folder, absolute, since actors have working directories of their own.

    ConfigError for one that a Ray job would lose at its end.
    """
    place = Path(folder or Path("runs") / config.name).resolve()
    # Ray sets it in the processes of `ray job submit`, which unpacks the code into a folder of its
    # own and removes that after the job.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and place.is_relative_to(Path.cwd()):
        raise ConfigError(
            f"{place} is in this job's working directory, which goes with the job; give --run DIR"
        )
    return place


def quiet() -> None:
    """Turn the libraries' chatter below an error off, where the environment says nothing else.

    They read these variables as they are imported. RAYWARD_WORKER_LOGS leaves them as they are.
    """
    if os.environ.get("RAYWARD_WORKER_LOGS"):
        return
    for name in ("VLLM_LOGGING_LEVEL", "RAY_LOG_LEVEL"):
        os.environ.setdefault(name, "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class RunReader:
    """What is in a run's folder, read whenever it is asked for: a run at work can be watched.

    What a run does not have, or not yet, is a StageError that names what it has.
    """

    def __init__(self, folder: str | Path) -> None:
        """ValueError where no run has begun in the folder."""
        self.folder = Path(folder).resolve()
        # The second is there before the first stage is done, the first after it.
        begun = any((self.folder / name).is_file() for name in ("config.yaml", "machine.json"))
        if not begun and not self.done:
            raise ValueError(
                f"{self.folder} is no run folder: it has neither config.yaml nor a stage with a "
                "manifest.json. Give the folder of `rayward align CONFIG --run DIR`"
            )

    def __repr__(self) -> str:
        return f"rayward.Run({str(self.folder)!r})"

    @property
    def done(self) -> tuple[str, ...]:
        """The finished stages, of rl the finished parts (rl/ppo), in the order of the road."""
        return tuple(self._having("manifest.json"))

    @property
    def config(self) -> Config:
        """The config, with every field spelled out."""
        return load(str(self._file("config.yaml", "it is written after the first stage")))

    @property
    def summary(self) -> dict[str, Any]:
        """The figures of each finished stage by its name, seconds, and the peak memory."""
        return read_json(self._file("summary.json", "it is written after the first stage"))

    @property
    def report(self) -> Path:
        """The report, one HTML page."""
        return self._file("report.html", f"rayward report {self.folder} writes it")

    @property
    def models(self) -> dict[str, Path]:
        """Folders of the models that finished stages made, by name: sft, reward, ppo and so on."""
        places = {name: f"{part}/model" for name, part in MODELS.items()} | REWARD_MODELS
        done = self.done
        return {
            name: self.folder / place
            for name, place in places.items()
            if place.rpartition("/")[0] in done and (self.folder / place).is_dir()
        }

    def metrics(self, part: str) -> dict[str, list[Any]]:
        """The metrics.jsonl of a stage ("sft") or part ("rl/ppo", or "ppo") as columns by name.

        Names of nested figures are joined by a slash, as "time/iteration_s". Each column has an
        entry for each step, None where a step has no such figure.
        """
        rows = [dict(flatten(row)) for row in read_jsonl(self._of(part, "metrics.jsonl"))]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def transcripts(self, algorithm: str) -> Iterator[dict[str, Any]]:
        """The answers of an RL algorithm, iteration by iteration: iteration, prompt, answer, score,
        finished, tokens (their number), and of a few answers pieces, kl (nats) and advantages by
        token.
        """
        # Outside of the generator: a mistake is told here, not at the first row.
        files = sorted(self._of(algorithm, "transcripts").glob("*.jsonl"))
        return ({"iteration": int(file.stem), **row} for file in files for row in read_jsonl(file))

    def _having(self, name: str) -> list[str]:
        """Stages and their parts whose folder has this file or folder, in the order of the road."""
        places = [
            path.parent
            for stage in STAGES
            for pattern in (f"{stage}/{name}", f"{stage}/*/{name}")
            for path in sorted(self.folder.glob(pattern))
        ]
        return [str(place.relative_to(self.folder)) for place in places]

    def _of(self, part: str, name: str) -> Path:
        """The file or folder of a part; models and algorithms stand for the part that makes them.

        StageError where there is none.
        """
        having, place = self._having(name), MODELS.get(part, part)
        if place not in having:
            raise StageError(
                f"{self.folder} has no {name.partition('.')[0]} of {part}, only of "
                f"{', '.join(having) or 'nothing so far'}"
            )
        return self.folder / place / name

    def _file(self, name: str, when: str) -> Path:
        path = self.folder / name
        if not path.is_file():
            raise StageError(
                f"{self.folder} has no {name}: {when}. Done are: "
                f"{', '.join(self.done) or 'no stages'}"
            )
        return path


def _listed(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ",".join(names)
