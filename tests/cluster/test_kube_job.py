"""The entrypoint of a rendered RayJob, handed to a real head by `ray job submit` with the rendered
runtime environment and token authentication, as KubeRay's submitter does.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayward.cluster.kube.names import CONFIG_FOLDER
from rayward.cluster.kube.ray_objects import config_map, ray_job
from rayward.configs.load import load
from tests.cluster.ray_head import BIN, ray_head

TINY = Path(__file__).parents[1] / "tiny.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a head's clients."""
    with ray_head(tmp_path_factory.mktemp("ray"), RAY_JOB_STOP_WAIT_TIME_S="60") as started:
        yield started.client(RAY_API_SERVER_ADDRESS=started.url)


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
