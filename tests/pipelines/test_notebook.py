"""The notebook of the documentation runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def read() -> Any:
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with the CPU set of packages")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_has_ten_cells_and_no_outputs() -> None:
    cells = read().cells
    assert len(cells) == 10
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    # The kernel is a process of its own, in the folder of the test.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read()
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=where, kernel_name="python3").execute()
    assert (tmp_path / "runs" / "notebook" / "rl" / "rloo" / "manifest.json").is_file()
    said = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in said), "the plot"
    (answer,) = notebook.cells[-1].outputs
    assert answer["text"].strip(), "the answer of the model"
