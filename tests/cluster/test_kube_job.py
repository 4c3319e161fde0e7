"""The entrypoint of a rendered RayJob, handed to a real head by `ray job submit` with the rendered
runtime environment and token authentication, as KubeRay's submitter does.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from rayward.cluster.kube.names import CONFIG_FOLDER
from rayward.cluster.kube.ray_objects import config_map, ray_job
from rayward.cluster.ports import free_port
from rayward.configs.load import load

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TINY = Path(__file__).parents[1] / "tiny.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A head with a dashboard, and the environment of its clients."""
    gcs, dashboard = free_port(), free_port()
    folder = tmp_path_factory.mktemp("ray")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        # As the pods have it: `authOptions: {mode: token}`.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
        "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus", "4"]
    command += ["--port", str(gcs), "--dashboard-port", str(dashboard)]
    command += ["--object-store-memory", str(300 * 2**20), "--disable-usage-stats"]
    short = f"/tmp/rw{os.getpid()}"  # sockets lie below it
    command += ["--temp-dir", short]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    client = environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        _wait(process, client, folder / "log.txt")
        yield client
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(short, ignore_errors=True)


def _wait(process: subprocess.Popen[bytes], client: dict[str, str], log: Path) -> None:
    token = {"Authorization": f"Bearer {client['RAY_AUTH_TOKEN']}"}
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            url = f"{client['RAY_API_SERVER_ADDRESS']}/api/jobs/"
            if httpx.get(url, headers=token, timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise AssertionError("no dashboard: " + log.read_text()[-3000:])


@pytest.fixture(scope="module")
def submit(
    head: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], tuple[int, str, Path]]:
    """Hands the job over as its pod would; (status, log, volume)."""
    volume, etc = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("etc")
    settings = [f"kube.mount={volume}", "publish=null", "evaluate=null", "dpo=null", "sample=null"]
    config = load(str(TINY), [*settings, "rl.algorithms=[rloo]", "rl.rloo={}"])
    job: dict[str, Any] = ray_job(config)["spec"]
    for name, text in config_map(config)["data"].items():
        (etc / name).write_text(text)
    # A local head has no ConfigMap mounted; all else is as it was rendered.
    entrypoint = job["entrypoint"].replace(CONFIG_FOLDER, str(etc))
    environment = yaml.safe_load(job["runtimeEnvYAML"])
    (etc / "runtime_env.yaml").write_text(yaml.safe_dump(environment))

    def run() -> tuple[int, str, Path]:
        command = [str(BIN / "ray"), "job", "submit", "--runtime-env"]
        command += [str(etc / "runtime_env.yaml"), "--", *shlex.split(entrypoint)]
        done = subprocess.run(
            command, env=head, cwd=etc, capture_output=True, text=True, timeout=900
        )
        return done.returncode, done.stdout + done.stderr, volume / "runs" / config.name

    return run


def test_a_rendered_job_runs_and_a_retry_goes_on_in_the_run_folder(
    submit: Callable[[], tuple[int, str, Path]],
) -> None:
    status, log, run = submit()
    assert status == 0, log[-4000:]
    assert (run / "rl" / "rloo" / "manifest.json").is_file() and (run / "summary.json").is_file()
    # What KubeRay does with backoffLimit where a cluster is lost: the same command once more.
    status, log, run = submit()
    assert status == 0 and log.count("done before, nothing to do") >= 3, log[-4000:]
