"""A stage goes on by itself where a process was lost, not where it would fail again."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError

from rayward.actors.budget import WINDOW_S
from rayward.actors.pulse import Unanswered
from rayward.configs.load import ConfigError
from rayward.pipelines.run.errors import StageError, of_infrastructure
from rayward.pipelines.run.retries import Retries
from rayward.pipelines.run.signals import wishes


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ActorDiedError(), True),
        (ActorUnavailableError("gone", None), True),
        (OutOfMemoryError("killed"), True),
        (Unanswered("policy 0 has not moved for 600 s"), True),
        (caused(RuntimeError("a step failed"), ActorDiedError()), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (RuntimeError("Training failed:\n ray.exceptions.ActorDiedError: it died"), True),
        (TimeoutError("policy 0 did not answer within 300 s; raise start_timeout_s"), False),
        (StageError("sft was made with other settings"), False),
        (caused(ActorDiedError(), ValueError("line 3: no prompt")), True),
        (ValueError("line 3: no prompt"), False),
        (ConfigError("no such preset"), False),
        (FloatingPointError("gradient norm is nan"), False),
        (KeyError("x"), False),
    ],
)
def test_what_may_work_again(error: Exception, lost: bool) -> None:
    assert of_infrastructure(error) is lost


def test_an_actor_that_cannot_be_made_is_not_made_again(local_ray: None) -> None:
    @ray.remote(num_cpus=0)
    class Broken:
        def __init__(self) -> None:
            raise KeyError("no such weight")

        def work(self) -> None: ...

    @ray.remote(num_cpus=0)
    class Killed:
        def work(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    for cls, lost in ((Broken, False), (Killed, True)):
        with pytest.raises(ActorDiedError) as caught:
            ray.get(cls.remote().work.remote())
        assert of_infrastructure(caught.value) is lost


def test_at_most_so_many_times_within_an_hour(capsys: pytest.CaptureFixture[str]) -> None:
    retries, calls = Retries(2), []

    def work(fail: int) -> str:
        calls.append(fail)
        if len(calls) <= fail:
            raise Unanswered("rollout 1 has been silent for 25 s")
        return "done"

    assert retries.run("rl", lambda: work(2)) == "done" and len(calls) == 3
    said = capsys.readouterr().out
    assert "rl lost a process: rollout 1 has been silent for 25 s" in said
    assert "(1 of 2 times" in said and "(2 of 2 times" in said
    calls.clear()
    with pytest.raises(Unanswered):
        retries.run("rl", lambda: work(1))
    retries.at = [time.monotonic() - WINDOW_S - 1, time.monotonic() - WINDOW_S - 1]
    calls.clear()
    assert retries.run("rl", lambda: work(2)) == "done"


def test_what_is_no_loss_is_raised_at_once() -> None:
    calls = []

    def work() -> None:
        calls.append(1)
        raise ValueError("line 3")

    with pytest.raises(ValueError, match="line 3"):
        Retries(3).run("sft", work)
    with pytest.raises(Unanswered):
        Retries(0).run("sft", lambda: (_ for _ in ()).throw(Unanswered("late")))
    assert calls == [1]


def test_signals_ask_and_a_second_one_ends(capfd: pytest.CaptureFixture[str]) -> None:
    asked: list[bool] = []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with wishes(asked.append):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert asked == [False]
    asked.clear()
    with pytest.raises(KeyboardInterrupt), wishes(asked.append):
        os.kill(os.getpid(), signal.SIGTERM)
    asked.clear()
    with pytest.raises(KeyboardInterrupt), wishes(asked.append, "iteration"):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == [False, True]
        assert "ends after the iteration, with a checkpoint" in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("a second one ends at once")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)) == before


def test_parts_are_kept_for_a_later_try(
    tmp_path: Path, tiny_config, capsys: pytest.CaptureFixture[str]
) -> None:
    from rayward.pipelines.run.folder import Run
    from rayward.pipelines.run.stage import begin

    made = []

    def make() -> list[dict[str, float]]:
        made.append(1)
        return [{"score": 0.1 + 0.2, "none": float("nan")}]

    stage = begin(Run(tmp_path, tiny_config()), "prepare")
    assert stage and not stage.kept("a")
    first = stage.part("a", make)
    (stage.folder / "half.txt").write_text("x")
    again = begin(Run(tmp_path, tiny_config()), "prepare")
    assert again and again.kept("a") and again.part("a", make)[0]["score"] == first[0]["score"]
    assert made == [1]
    begun = tmp_path / "prepare" / "checkpoints" / "begun.json"
    begun.write_text(begun.read_text().replace(f'"ray": "{ray.__version__}"', '"ray": "1.0"'))
    begin(Run(tmp_path, tiny_config()), "prepare")
    assert f"ray was 1.0, now {ray.__version__}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="checkpoints that were made with other settings: .*seed"):
        begin(Run(tmp_path, tiny_config(seed=99)), "prepare")
    again.finish({})
    assert not (tmp_path / "prepare" / "checkpoints").exists()
