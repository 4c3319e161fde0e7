"""The application that a rendered RayService names, run by `serve run` on a local Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from rayward.cluster.kube.ray_objects import ray_service
from rayward.cluster.ports import free_port
from rayward.cluster.serve import app
from rayward.cluster.serve.deploy import tell_who_reaches
from rayward.cluster.serve.endpoint import Endpoint
from rayward.configs.schema import Config

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
QUESTION = [{"role": "user", "content": "What is the colour of the sky?"}]


def wait_for(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    """Until the endpoint lists its model; what was logged where it ends before."""
    import time

    for _ in range(900):
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if httpx.get(f"{url}/v1/models", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.4)
    raise AssertionError("not up within 6 minutes: " + log.read_text()[-4000:])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, tiny_models: Any) -> Path:
    """A volume with a run whose stage publish has chosen the SFT model."""
    volume = tmp_path_factory.mktemp("shared")
    run = volume / "runs" / "tiny"
    (run / "sft").mkdir(parents=True)
    (run / "sft" / "model").symlink_to(tiny_models.policy)
    (run / "publish").mkdir()
    (run / "publish" / "manifest.json").write_text(json.dumps({"metrics": {"model": "sft"}}))
    return volume


@pytest.fixture(scope="module")
def service(published: Path, tiny_config: Callable[..., Config]) -> dict[str, Any]:
    """The config of Serve in a RayService that is rendered for that volume."""
    config = tiny_config(kube={"mount": str(published)}, publish={"model_id": "tiny-chat"})
    item = ray_service(config)
    serve: dict[str, Any] = yaml.safe_load(item["spec"]["serveConfigV2"])
    return serve


@pytest.fixture(scope="module")
def url(service: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`serve run` of it, as it stands but for the port, which may be taken here."""
    folder = tmp_path_factory.mktemp("serve")
    port = free_port()
    service = service | {"http_options": service["http_options"] | {"port": port}}
    (folder / "serve.yaml").write_text(yaml.safe_dump(service))
    # Without an address `serve run` starts a Ray of its own, which ends with it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_ADDRESS")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_TRAIN_V2_ENABLED": "1"}
    log = folder / "log.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(BIN / "serve"), "run", str(folder / "serve.yaml")],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        wait_for(process, log, f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(2)  # as Ctrl-C: Serve and its Ray go too
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def test_the_rendered_service_answers_a_chat_request(url: str, service: dict[str, Any]) -> None:
    (application,) = service["applications"]
    assert application["import_path"] == "rayward.cluster.serve:app"
    models = httpx.get(f"{url}/v1/models", timeout=60, trust_env=False).json()
    assert [model["id"] for model in models["data"]] == ["tiny-chat"]
    body = {"model": "tiny-chat", "messages": QUESTION, "temperature": 0.0, "max_tokens": 8}
    answers = [
        httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    choices = [answer.json()["choices"][0] for answer in answers]
    assert choices[0]["message"]["content"] == choices[1]["message"]["content"] != ""
    assert answers[0].json()["usage"]["completion_tokens"] <= 8


def test_the_arguments_are_those_that_publish_deploys(
    published: Path, service: dict[str, Any], tiny_config: Callable[..., Config]
) -> None:
    (application,) = service["applications"]
    given = Endpoint.model_validate(application["args"])
    folder = str(published / "runs" / "tiny" / "sft" / "model")
    config = tiny_config(publish={"model_id": "tiny-chat"})
    deployed = Endpoint.of(config, folder)
    assert given.folder == deployed.folder == folder
    assert given.model_copy(update={"model": folder}) == deployed


def test_arguments_of_a_command_line_are_text_and_mistakes_are_told(tmp_path: Path) -> None:
    endpoint = Endpoint.model_validate({"model": str(tmp_path), "replicas": "2", "gpus": "1"})
    assert (endpoint.replicas, endpoint.gpus) == (2, 1)
    with pytest.raises(ValueError, match=r"holds no model .* and is no run that has published"):
        app(endpoint)
    with pytest.raises(ValueError, match="replica"):
        Endpoint.model_validate({"model": "m", "replica": 2})


@pytest.mark.parametrize(
    ("host", "wanted", "words"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("localhost", "0.0.0.0", None),
        (
            "10.0.0.1",
            "10.0.0.1",
            "anyone who reaches 10.0.0.1, port 8000, can ask the model: there is no key; "
            "publish.host 127.0.0.1 leaves it to the head's own machine\n",
        ),
        ("::", "::", "anyone on any network of the head, port 8000, can ask"),
        (
            "0.0.0.0",
            "127.0.0.1",
            "Serve was up before with that address, so publish.host changes nothing\n",
        ),
    ],
)
def test_who_may_ask_is_said_where_others_may(
    host: str, wanted: str, words: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_who_reaches(host, 8000, wanted, "publish.host")
    told = capsys.readouterr().out
    assert (words in told and told.startswith("   note: ")) if words else told == ""
