"""Checkpoints of an algorithm of online RL: what a killed run goes on from, to the same bits.

One stands at the end of an iteration. Policy and critic copy theirs right after their update, each
rank its own part, while they have their memory, and write it beside what comes next; then the
driver adds what it remembers, and makes it a checkpoint beside the next iteration. All else of an
iteration follows from the config, its number, and these.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from tqdm import tqdm

from rayward.actors.beside import beside
from rayward.actors.checkpoints import WORTH_S, Checkpoint, Checkpoints
from rayward.actors.group import TrainingGroup
from rayward.actors.rollout.generation import Arrived
from rayward.configs.last_bits import of_rl
from rayward.configs.sections.algorithms import WITH_CRITIC
from rayward.pipelines.run.files import read_json, read_jsonl, write_json, write_jsonl
from rayward.pipelines.run.signals import wishes
from rayward.pipelines.run.stage import Stage
from rayward.pipelines.run.taking_up import take_up

DRIVER, IN_FLIGHT, METRICS = "driver.json", "in_flight.pkl", "metrics.jsonl"
LEARNER_PARTS = ("weights", "optimizer", "random")
BY_ITERATION = ("transcripts", "rollouts", "fixed")
"""Folders of a stage with a file each iteration."""


class RlCheckpoints:
    """Those of one algorithm. `done`: the iterations that the last whole one has; 0: there is none.

    `state` and `history` are of that one, and empty where there is none.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage, self.settings = stage, stage.run.config.checkpoint
        self.iterations = stage.run.config.rl.iterations
        self.made = Checkpoints(stage.checkpoints_of("training").resolve(), self.settings.keep)
        config, algorithm = stage.run.config, stage.name.removeprefix("rl/")
        learners = ("policy", "critic") if algorithm in WITH_CRITIC else ("policy",)
        # A replay has nothing in flight.
        self.ahead = config.rl.mode == "one_step_off" and "replay" not in stage.settings
        expected = [f"{name}/{part}" for name in learners for part in LEARNER_PARTS]
        expected += ["driver", "metrics", *(["in_flight"] if self.ahead else [])]
        bits, where = of_rl(config, learners), "after {} of {} iterations"
        taken_up = take_up(stage, stage.name, self.made, expected, bits, where, self.iterations)
        self.found, self.info = taken_up.found, taken_up.info
        self.done = self.found.step if self.found else 0
        self.state: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        if self.found:
            if "driver" not in self.found.missing:
                self.state = read_json(self.found.folder / DRIVER)
            if "metrics" not in self.found.missing:
                self.history = list(read_jsonl(self.found.folder / METRICS))
            self._cut_back()
        self.wish, self.stop, self.ends = False, False, False
        self.written_at, self.writing, self._last = time.monotonic(), 0, self.done
        # The learners that write, the checkpoint to which the driver has added its part, and the
        # one that is made of what all have written.
        self._learners: Mapping[str, TrainingGroup] = {}
        self._added = 0
        self._making: tuple[int, Future[Checkpoint]] | None = None
        self.written, self.waited_s = 0, 0.0

    def _cut_back(self) -> None:
        """Remove what iterations after the checkpoint wrote; they are done again."""
        for name in BY_ITERATION:
            for path in (self.stage.folder / name).glob("[0-9]*.*"):
                if int(path.stem) >= self.done:
                    path.unlink()
        spans = self.stage.folder / "spans.jsonl"
        if spans.is_file():
            lines = spans.read_text(encoding="utf-8").splitlines(keepends=True)
            spans.write_text("".join(lines[: self.done]), encoding="utf-8")

    # ---- going on

    @property
    def taken(self) -> int:
        """Prompts that the responses so far are to, those in flight too."""
        iterations = self.done + self.ahead
        count: int = self.state.get(
            "taken", iterations * self.stage.run.config.rl.prompts_per_iteration
        )
        return count

    def load(self, learners: Mapping[str, TrainingGroup]) -> None:
        """Policy and critic as the checkpoint has them; as they started where there is none."""
        if not self.found:
            return
        for name, group in learners.items():
            anew = [part for part in LEARNER_PARTS if f"{name}/{part}" in self.found.missing]
            # What belongs to other weights is of no use.
            if "weights" not in anew:
                group.call("load_state", str(self.found.folder / name), anew)

    def in_flight(self) -> Arrived | None:
        """Responses of the next iteration that were sampled before the checkpoint."""
        if not self.found or "in_flight" not in self.found.parts - self.found.missing:
            return None
        with (self.found.folder / IN_FLIGHT).open("rb") as file:
            arrived: Arrived | None = pickle.load(file)
        return arrived

    # ---- writing

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Signals are granted after the update of the iteration that they come in."""

        def ask(stop: bool) -> None:
            self.wish, self.stop = True, self.stop or stop

        try:
            with wishes(ask, "iteration"):
                yield
        except Exception:
            # One that is being made is gone on from. A learner that is lost is told already.
            with suppress(Exception):
                self.settle()
            raise

    def begin(self, done: int, learners: Mapping[str, TrainingGroup]) -> None:
        """After the update of an iteration, the `done`-th: let the learners write, where it is time
        for a checkpoint.
        """
        if self._due(done):
            self._begin(done, learners)

    def _begin(self, done: int, learners: Mapping[str, TrainingGroup]) -> None:
        self.settle()
        started_at, self.writing, self._learners = time.monotonic(), done, learners
        # What is asked for from here on is for the next one.
        self.ends, self.wish = self.stop, False
        calls = {}
        # Engines that take turns with the learners have moved them into that memory.
        copies = 0 if self.stage.run.config.rl.mode == "colocate" else len(learners)
        try:
            place = self.made.new(done)
            for name, group in learners.items():
                (place / name).mkdir()
                calls[name] = group.begin("save_state", str(place / name), copies)
            for name, pending in calls.items():
                learners[name].finish(pending)
        except OSError as error:
            if isinstance(error, TimeoutError):  # a rank that hangs, and not its disk
                raise
            # No thread may be at it any more when the next one begins.
            with suppress(OSError):
                self._all_written([learners[name] for name in calls])
            self._give_up(done, error)
        self.waited_s += time.monotonic() - started_at

    def _give_up(self, done: int, error: Exception) -> None:
        """It costs this checkpoint, and no more."""
        # Ray keeps the worker's own error, whose text is no traceback, in `cause`.
        reason = str(getattr(error, "cause", None) or error).split("\n")[0]
        tqdm.write(
            f"   {self.stage.name}: no checkpoint after {done} iterations, the one before "
            f"stays: {reason}"
        )
        self.written_at, self.writing = time.monotonic(), 0

    def _due(self, done: int) -> bool:
        settings, since_s = self.settings, time.monotonic() - self.written_at
        last = done == self.iterations
        return (
            self.wish
            or (last and since_s > WORTH_S)
            or bool(settings.every_steps and done % settings.every_steps == 0 and not last)
            or bool(settings.every_minutes and since_s >= 60 * settings.every_minutes)
        )

    def complete(
        self, state: Mapping[str, Any], history: list[dict[str, Any]], in_flight: Arrived | None
    ) -> None:
        """At the end of the iteration: add the driver's part."""
        started_at, done = time.monotonic(), self.writing
        place = self.made.writing(done)
        try:
            write_json(place / DRIVER, state)
            write_jsonl(place / METRICS, history)
            if in_flight or self.ahead:  # None after the last iteration
                with (place / IN_FLIGHT).open("wb") as binary:
                    pickle.dump(in_flight, binary)
        except OSError as error:
            self._give_up(done, error)
        else:
            self._added, self.writing, self.written_at = done, 0, time.monotonic()
        self.waited_s += time.monotonic() - started_at
        if self.ends:
            self.settle()

    def go_on(self) -> None:
        """After the learners have waited for new responses, so that their threads had the time: a
        checkpoint is made of what they have written, beside what comes next.
        """
        if not self._added:
            return
        started_at, done = time.monotonic(), self._added
        self._added = 0
        try:
            self._all_written(self._learners.values())
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            self._give_up(done, error)
        else:
            self._making = done, beside(partial(self.made.complete, done, self.info))
        self.waited_s += time.monotonic() - started_at

    def _all_written(self, learners: Iterable[TrainingGroup]) -> None:
        """Wait until no learner writes any more. Raises the first OSError."""
        first: OSError | None = None
        for group in learners:
            try:
                group.call("state_saved")
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                first = first or error
        if first:
            raise first

    def settle(self) -> None:
        """Wait for the checkpoint that is being made; it counts, or is given up."""
        self.go_on()
        if self._making is None:
            return
        (done, making), started_at = self._making, time.monotonic()
        self._making = None
        try:
            making.result()
        except (OSError, ValueError) as error:
            self._give_up(done, error)
        else:
            self.written, self._last = self.written + 1, done
        self.waited_s += time.monotonic() - started_at

    @property
    def last(self) -> int:
        """The iterations that the last one has; for whoever has lost a process already."""
        with suppress(Exception):  # of a learner: that one is lost too
            self.settle()
        return self._last

    def rescue(
        self,
        done: int,
        learners: Mapping[str, TrainingGroup],
        state: Mapping[str, Any],
        history: list[dict[str, Any]],
    ) -> None:
        """A checkpoint out of turn, of learners that may be lost too: then there is none."""
        try:
            self._begin(done, learners)
            if self.writing:
                self.complete(state, history, None)
                self.settle()
        except Exception as error:
            self._give_up(done, error)

    def tell(self) -> None:
        """Say what they cost."""
        self.settle()
        if self.written:
            print(f"   {self.written} checkpoints, {self.waited_s:.1f} s waited", flush=True)
