"""A finished run of the tiny road, commands as people give them, and a real browser for the pages
they write.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayward.configs.schema import Config
from rayward.pipelines.run.folder import Run
from tests.pipelines.brought import SOURCES, write

# Fixtures.
from tests.pipelines.served_models import random_llama, serve, vllm_environment  # noqa: F401

TINY = Path(__file__).parents[1] / "tiny.yaml"

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = playwright.chromium.launch(executable_path=path, args=arguments)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def rayward(local_ray: None) -> Callable[..., str]:
    """`rayward("rl", folder, "--set", ...)` on tiny.yaml: what it printed; it must not fail.

    In this process and on its Ray, so that neither is started and imported anew; `road` is made by
    a process of its own.
    """
    from tests.pipelines import commands

    def command(name: str, folder: Path, *options: str) -> str:
        done = commands.rayward(name, TINY, "--run", folder, *options, cwd=Path.cwd())
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return command


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of all stages, by a command with a Ray of its own."""
    folder = tmp_path_factory.mktemp("road")
    command = [sys.executable, "-m", "rayward.pipelines.cli", "align", str(TINY)]
    done = subprocess.run(
        [*command, "--run", str(folder)], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "log.txt").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def own(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Config]
) -> Callable[..., Config]:
    """A config that reads SOURCES; sections given are merged over it."""
    root = tmp_path_factory.mktemp("data")
    lists = write(root, SOURCES)

    def config(**overrides: Any) -> Config:
        data = {
            "toyworld": None,
            "root": str(root),
            "heldout_fraction": 0.3,
            **lists,
            **overrides.pop("data", {}),
        }
        return tiny_config(
            **{
                "model": {"context_tokens": 128, "scratch": {"vocab_size": 320}},
                "data": data,
                "evaluate": {"judge": "reward_model", "prompts": 16},
                **overrides,
            }
        )

    return config


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, own: Callable[..., Config]) -> Run:
    """A finished prepare stage on SOURCES."""
    from rayward.pipelines.stages import prepare

    run = Run(tmp_path_factory.mktemp("run"), own())
    assert prepare.prepare(run) is not None
    return run
