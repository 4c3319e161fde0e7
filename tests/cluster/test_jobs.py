"""Runs as jobs of a real `ray start --head` with token authentication: handed over, followed,
stopped, killed and gone on with; and what a client is told that cannot reach a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster.ray_head import BIN, RayHead, ray_head, until
from tests.cluster.relay import Relay, relay

TINY = Path(__file__).parents[1] / "tiny.yaml"
pytestmark = pytest.mark.timeout(1200)
STAGES = ("reward", "sample", "dpo", "rl", "evaluate", "publish")
SHORT = ["name=short", "data.toyworld.demonstrations=160", *(f"{name}=null" for name in STAGES)]
"""Settings of a run that ends with SFT."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("ray")) as started:
        yield started


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder with a config and nothing else."""
    folder = tmp_path / "clean"
    folder.mkdir()
    shutil.copy(TINY, folder / "tiny.yaml")
    return folder


def started(
    arguments: list[str], folder: Path, environment: dict[str, str]
) -> subprocess.Popen[str]:
    """A command, with both of its outputs in one."""
    program = (
        [sys.executable, "-m", "rayward.pipelines.cli"]
        if arguments[0] == "rayward"
        else [str(BIN / arguments[0])]
    )
    return subprocess.Popen(
        [*program, *arguments[1:]],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Of tests that a shell runs in the background children would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(process: subprocess.Popen[str], seconds: float = 600) -> tuple[int, str]:
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def ran(arguments: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    return ended(started(arguments, folder, environment))


def sets(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def submit(run: Path, settings: list[str], *more: str) -> list[str]:
    return ["rayward", "submit", "tiny.yaml", "--run", str(run), *sets(settings), *more]


def job_of(output: str) -> str:
    return next(line.split()[1].strip(",") for line in output.splitlines() if "submitted:" in line)


def log(head: RayHead, job: str) -> str:
    return str(head.get(f"/api/jobs/{job}/logs")["logs"])


def test_a_client_without_the_token_is_told_in_one_sentence(
    head: RayHead, clean: Path, tmp_path: Path
) -> None:
    align = ["rayward", "align", "tiny.yaml", "--run", str(tmp_path / "run")]
    handed = submit(tmp_path / "run", [])
    none = {"RAY_AUTH_MODE": None, "RAY_AUTH_TOKEN": None, "HOME": str(tmp_path)}
    cases = [
        (align, {**none, "RAY_ADDRESS": head.gcs}, "no token was given"),
        (align, {"RAY_AUTH_TOKEN": "0" * 32, "RAY_ADDRESS": head.gcs}, "missing or another one"),
        (handed, {**none, "RAY_ADDRESS": head.url}, "no token was given"),
    ]
    at_work = [started(command, clean, head.client(**more)) for command, more, _ in cases]
    for process, (command, more, words) in zip(at_work, cases, strict=True):
        status, output = ended(process, 60)
        assert status == 2 and words in output, (command, more, output)
        # One sentence, after what is handed over; nothing of Ray's stacks.
        told = [line for line in output.splitlines() if line.startswith("rayward: ")]
        assert len(told) == 1 and len(output.splitlines()) <= 4, output
        assert told[0].endswith(
            "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to that of its "
            "head"
        )
    assert not (tmp_path / "run").exists()


def test_a_stopped_job_leaves_nothing_and_the_next_goes_on(
    head: RayHead, clean: Path, tmp_path: Path
) -> None:
    run, client = tmp_path / "runs" / "short", head.client(RAY_ADDRESS=head.url)
    # Long enough to be stopped in.
    began = time.monotonic()
    process = started(submit(run, [*SHORT, "sft.epochs=25"]), clean, client)
    output = read_to(process, "sft: 1/")
    print(f"submit to the first SFT step: {time.monotonic() - began:.1f} s")
    assert "%|" not in output and "\r" not in output, output
    job = job_of(output)
    # Ctrl-C leaves it at work.
    process.send_signal(signal.SIGINT)
    status, output = ended(process, 30)
    assert (
        status == 130
        and f"rayward: the job goes on; follow it with rayward submit --attach {job}" in output
    )
    assert f"stop it with ray job stop {job} --address {head.url}" in output
    # The same run folder again, while it is at work.
    status, output = ran(submit(run, SHORT), clean, client)
    assert status == 2 and f"job {job} is at work on {run}" in output, output
    assert f"rayward submit --attach {job} --address {head.url}" in output
    # Whoever follows it is told when it is stopped.
    follower = started(["rayward", "submit", "--attach", job], clean, client)
    asked = time.monotonic()
    status, output = ran(["ray", "job", "stop", job], clean, client)
    assert status == 0, output
    print(f"stopped after {time.monotonic() - asked:.1f} s")
    print(f"nothing left after {head.empty_within(20):.1f} s")
    assert head.get(f"/api/jobs/{job}")["status"] == "STOPPED"
    assert "rayward: interrupted; run the same command again to go on" in log(head, job)
    status, output = ended(follower, 60)
    assert status == 130 and "sft: 1/" in output and f"job {job} was stopped" in output, output
    assert (run / "prepare" / "manifest.json").is_file()
    # Submitted again as Ray's own command does it, from a folder with the config only.
    shutil.copy(TINY, clean / "tiny.yaml")
    entry = ["rayward", "align", "tiny.yaml", "--run", str(run), *sets([*SHORT, "sft.epochs=25"])]
    status, output = ran(
        ["ray", "job", "submit", "--working-dir", ".", "--", *entry], clean, client
    )
    assert status == 0 and "done before, nothing to do" in output, output
    # The signal left a checkpoint of the step that it came in.
    assert re.search(r"sft: goes on from step [1-9]\d* of ", output), output
    assert (run / "sft" / "manifest.json").is_file() and (run / "summary.json").is_file()
    head.empty_within(20)


def test_the_status_of_a_job_is_that_of_its_command(head: RayHead, clean: Path) -> None:
    client = head.client(RAY_ADDRESS=head.url)
    entry = ["rayward", "align", "tiny.yaml", "--run", "/x", "--set", "seeds=1"]
    status, output = ran(
        ["ray", "job", "submit", "--working-dir", ".", "--", *entry], clean, client
    )
    # Ray's command knows 0 and 1 only; the job itself has the status.
    assert status == 1 and "seeds" in output, output
    jobs = {job["entrypoint"]: job for job in head.get("/api/jobs/")}
    failed = jobs[" ".join(entry)]
    assert failed["driver_exit_code"] == 2, failed
    job = failed["submission_id"]
    status, output = ran(["rayward", "submit", "--attach", job], clean, client)
    assert status == 2 and f"job {job} ended with status 2" in output, output


COUNTS = """
import time
for number in range(50):
    print("line", number, flush=True)
    time.sleep(0.25)
"""
FOLLOWS = """
import sys
from rayward.cluster import jobs
jobs.QUIET_S, jobs.LOST_S = 1, 3
try:
    print("status", jobs.Jobs(sys.argv[1], "--address").follow(sys.argv[2]))
except (TimeoutError, ValueError) as error:
    print(error)
"""


def follower(head: RayHead, way: Relay, job: str) -> subprocess.Popen[str]:
    """`rayward submit --attach` with less patience."""
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOWS, way.url, job],
        env=head.client(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_log_goes_on_over_another_connection(head: RayHead, clean: Path) -> None:
    (clean / "count.py").write_text(COUNTS)
    entry = ["--submission-id", "counted", "--no-wait", "--working-dir", "."]
    entry += ["--", "python", "count.py"]
    client = head.client(RAY_ADDRESS=head.url)
    status, output = ran(["ray", "job", "submit", *entry], clean, client)
    assert status == 0, output
    port = int(head.url.rpartition(":")[2])
    with relay(port) as way, relay(port) as cut, relay(port) as bare:
        process, lost = follower(head, way, "counted"), follower(head, cut, "counted")
        output = read_to(process, "line 3\n")
        way.cut()
        time.sleep(1)
        way.mend()
        output += read_to(process, "line 20\n")
        # Nobody is told that these are dead.
        way.fall_silent()
        read_to(lost, "line 3\n")
        cut.cut()
        output += read_to(process, "status")
        # Each once, also those that were said meanwhile.
        assert (
            output[output.index("line 0") :]
            == "".join(f"line {n}\n" for n in range(50)) + "status 0\n"
        )
        assert f"{cut.url} has not answered for 3 s; the job may go on: follow it with" in read_to(
            lost, "may go on"
        )
        assert process.wait(30) == lost.wait(30) == 0
        # As after the node of the job is gone: the head answers, and has no log.
        bare.refused = b"/logs/tail"
        assert ended(follower(head, bare, "counted"), 60)[1] == "status 0\n"
        # A head that was started anew knows nothing of it.
        _, told = ended(follower(head, bare, "forgotten"), 60)
        assert told.startswith(f"{bare.url} has no job forgotten; ray job list"), told


def test_another_version_of_ray_is_told(head: RayHead, tmp_path: Path) -> None:
    # What a head of another version has written into its own store.
    program = f"""
import json, ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER
from ray._raylet import GcsClient
from rayward.cluster.reach import check_joins
place = "{head.gcs}"
client = GcsClient(address=place)
ours = client.internal_kv_get(CLUSTER_METADATA_KEY, KV_NAMESPACE_CLUSTER)
check_joins(place, "RAY_ADDRESS")
for other in ({{"ray_version": "2.9.3"}}, {{"python_version": "3.12.1"}}):
    text = json.dumps(json.loads(ours) | other).encode()
    client.internal_kv_put(CLUSTER_METADATA_KEY, text, True, KV_NAMESPACE_CLUSTER)
    try:
        check_joins(place, "RAY_ADDRESS")
    except ValueError as error:
        print(type(error).__name__, error)
client.internal_kv_put(CLUSTER_METADATA_KEY, ours, True, KV_NAMESPACE_CLUSTER)
"""
    status, output = ended(
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=tmp_path,
            env=head.client(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    ray, python = output.splitlines()
    assert status == 0 and "has Ray 2.9.3 and Python" in ray and "Python 3.12.1" in python, output
    assert all(line.startswith("ConfigError the cluster at") for line in (ray, python))


@pytest.fixture(scope="module")
def road(head: RayHead, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder and the log of the whole road, handed over by Ray's own command."""
    folder = tmp_path_factory.mktemp("clean")
    shutil.copy(TINY, folder / "tiny.yaml")
    run, client = folder.parent / "road", head.client(RAY_API_SERVER_ADDRESS=head.url)
    began = time.monotonic()
    entry = ["rayward", "align", "tiny.yaml", "--run", str(run)]
    process = started(["ray", "job", "submit", "--working-dir", ".", "--", *entry], folder, client)
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        output += line
        if "sft: 1/" in line or "ppo: 1/" in line:
            print(f"{time.monotonic() - began:.1f} s after it was submitted:{line}", end="")
    assert process.wait(60) == 0, output[-4000:]
    print(f"the road as a job: {time.monotonic() - began:.1f} s")
    return run, output


@pytest.mark.slow
def test_the_whole_road_as_a_job(head: RayHead, road: tuple[Path, str]) -> None:
    _, output = road
    # Followed as on a terminal: stages in order, progress as lines, nothing of Ray's.
    places = [output.index(f"== {name}: ") for name in ("prepare", "sft", "rl", "publish")]
    assert places == sorted(places) and "ppo: 2/2 iter" in output
    for words in ("graceful_shutdown", "(raylet)", "Traceback", "%|"):
        assert words not in output, output
    head.empty_within(20)


@pytest.mark.slow
def test_a_mistake_that_only_the_cluster_knows_of_is_told(
    head: RayHead, clean: Path, tmp_path: Path
) -> None:
    settings = [*SHORT, "data.toyworld=null", "data.root=/not/there"]
    settings += ["data.conversations=[{path: rows.jsonl}]"]
    client = head.client(RAY_ADDRESS=head.url)
    status, output = ran(submit(tmp_path / "run", settings, "--no-follow"), clean, client)
    assert status == 0 and "ray job stop" in output, output
    status, output = ran(["rayward", "submit", "--attach", job_of(output)], clean, client)
    assert status == 2 and "/not/there/rows.jsonl: no such file" in output, output


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing(
    head: RayHead, road: tuple[Path, str], clean: Path
) -> None:
    client = head.client(RAY_ADDRESS=head.gcs)
    align = ["rayward", "align", "tiny.yaml", "--run", str(clean / "run")]
    shutil.copytree(road[0], clean / "run", symlinks=True)
    for stage, word, settings in (
        ("sft", "sft: 1/", ["sft.epochs=25"]),
        ("rl", "ppo: 1/", ["rl.iterations=500"]),
    ):
        process = started([*align, "--redo", stage, *sets(settings)], clean, client)
        read_to(process, word)
        assert head.living()
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        print(f"{stage}: nothing left after {head.empty_within(60):.1f} s")
        shutil.rmtree(clean / "run")
        shutil.copytree(road[0], clean / "run", symlinks=True)


@pytest.mark.slow
def test_two_runs_serve_at_once_and_neither_takes_the_other_down(
    head: RayHead, road: tuple[Path, str], clean: Path
) -> None:
    client, served = head.client(RAY_ADDRESS=head.gcs), []
    for name in ("one", "two"):
        shutil.copytree(road[0], clean / name, symlinks=True)
        command = ["rayward", "publish", "tiny.yaml", "--run", str(clean / name), "--keep"]
        command += ["--redo", "publish", "--set", f"publish.model_id={name}"]
        served.append(started(command, clean, client))
    urls = []
    for process in served:
        line = read_to(process, "serving ").splitlines()[-1]
        urls.append(re.findall(r"http://\S+/v1", line)[0])
    assert urls[0] != urls[1] and models(urls[0]) == ["one"] and models(urls[1]) == ["two"]
    # A second command on the run folder of the first is told so, and takes nothing down.
    again = ["rayward", "publish", "tiny.yaml", "--run", str(clean / "one"), "--keep"]
    status, output = ran([*again, "--set", "publish.model_id=one"], clean, client)
    assert status == 1 and "is up for another command that runs" in output, output
    assert "Traceback" not in output and "RayTaskError" not in output, output
    time.sleep(3)
    assert models(urls[0]) == ["one"]
    # The first dies, and its endpoint goes; the second has noticed nothing.
    os.kill(served[0].pid, signal.SIGKILL)
    served[0].wait(30)
    until(lambda: models(urls[0]) == [], 60, lambda: str(head.living()))
    assert models(urls[1]) == ["two"]
    os.kill(served[1].pid, signal.SIGTERM)
    status, output = ended(served[1], 60)
    assert status in (0, 130) and "Traceback" not in output, output
    print(f"nothing left after {head.empty_within(60):.1f} s")


def read_to(process: subprocess.Popen[str], words: str) -> str:
    """What is printed up to the line with the words; AssertionError where there is none."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError("".join(lines)[-4000:])


def models(url: str) -> list[str]:
    """The models that an endpoint lists; none where it does not answer as one."""
    try:
        answer = httpx.get(f"{url}/models", timeout=10, trust_env=False)
    except httpx.HTTPError:
        return []
    return [model["id"] for model in answer.json()["data"]] if answer.status_code == 200 else []
