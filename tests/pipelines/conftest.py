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
def rayward() -> Callable[..., str]:
    """`rayward("rl", folder, "--set", ...)` on tiny.yaml: what it printed; it must not fail."""

    def command(name: str, folder: Path, *options: str) -> str:
        command = [
            sys.executable,
            "-m",
            "rayward.pipelines.cli",
            name,
            str(TINY),
            "--run",
            str(folder),
            *options,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return command


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory, rayward: Callable[..., str]) -> Path:
    """A finished run of all stages."""
    folder = tmp_path_factory.mktemp("road")
    (folder / "log.txt").write_text(rayward("align", folder))
    return folder
