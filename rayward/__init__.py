"""Rayward: from a base language model to an aligned chat model behind an HTTP endpoint.

    config = rayward.load_config("quickstart", ["rl.iterations=20"])
    run = rayward.run(config)  # what `rayward align` does
    rayward.Run("runs/quickstart").metrics("rl/ppo")["kl"]

These names come from `pipelines/interface.py`, which is loaded when one of them is first asked for.
The floors of the house are packages below this one and folders beside it: `rayward.actors` is
`actors/` (`package-dir` in pyproject.toml says so where it is installed).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.pipelines.interface import RunReader as Run
    from rayward.pipelines.interface import load_config, run

    __version__: str

__all__ = ["Run", "__version__", "load_config", "run"]

_repository = Path(__file__).parents[1]
if (_repository / "pyproject.toml").is_file() and (_repository / "actors").is_dir():
    # A checkout on the path without being installed, as in a job's working directory: the floors
    # are found beside this folder.
    __path__.append(str(_repository))


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'rayward' has no attribute {name!r}")
    from rayward.pipelines import interface

    return getattr(interface, {"Run": "RunReader"}.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The installed version; of a checkout that is not installed, what its pyproject.toml says."""
    from importlib import metadata

    try:
        return metadata.version("rayward")
    except metadata.PackageNotFoundError:
        import tomllib

        project = tomllib.loads((_repository / "pyproject.toml").read_text(encoding="utf-8"))
        version: str = project["project"]["version"]
        return version
