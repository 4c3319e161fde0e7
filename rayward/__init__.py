"""Rayward: from a base language model to an aligned chat model behind an HTTP endpoint.

The floors of the house are packages below this one and folders beside it: `rayward.actors` is
`actors/` (`package-dir` in pyproject.toml says so where it is installed).
"""

from pathlib import Path

_repository = Path(__file__).parents[1]
if (_repository / "pyproject.toml").is_file() and (_repository / "actors").is_dir():
    # A checkout on the path without being installed, as in a job's working directory: the floors
    # are found beside this folder.
    __path__.append(str(_repository))
