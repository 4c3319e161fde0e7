"""Models by hub name, from a cache laid out as the hub's own; the hub itself is never asked
here.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayward.data.model_files import hub_models
from rayward.data.model_files.hub_models import fetched, is_hub_name, local, model_title

COMMITS = ("a" * 40, "b" * 40)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with two commits of org/tiny, of which `main` is the second and the tag v1 the
    first.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place = tmp_path / "hub" / "models--org--tiny"
    for commit in COMMITS:
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(COMMITS[1])
    (place / "refs" / "v1").write_text(COMMITS[0])
    return place


@pytest.mark.parametrize("name, commit", [
    ("org/tiny", 1), ("org/tiny@main", 1), ("org/tiny@v1", 0), (f"org/tiny@{COMMITS[0]}", 0),
])  # fmt: skip
def test_a_name_is_the_folder_of_its_snapshot(name: str, commit: int, cache: Path) -> None:
    assert is_hub_name(name)
    assert local(name) == fetched(name) == str(cache / "snapshots" / COMMITS[commit])
    assert model_title(local(name)) == "org/tiny"


def test_a_folder_goes_before_a_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert model_title("org/tiny") == "tiny"
    assert not is_hub_name("org/tiny") and local("org/tiny") == str(tmp_path / "org" / "tiny")
    shutil.rmtree(tmp_path / "org")
    assert is_hub_name("org/tiny")


@pytest.mark.parametrize("name", ["org/none", "org/tiny@v2", "runs/mine"])
def test_a_name_that_cannot_be_had_says_so(name: str, cache: Path) -> None:
    for get in (local, fetched):
        with pytest.raises(
            ValueError, match=rf"{name} is no folder here, .* it is not in the hub's cache"
        ):
            get(name)


@pytest.mark.parametrize(
    "path", ["/models/chat", "./chat", "chat", "a/b/c", "org/name@", "runs/x/model/"]
)
def test_what_is_a_path(path: str) -> None:
    assert not is_hub_name(path)


def test_code_of_a_model_is_trusted_only_where_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(hub_models.TRUST, raising=False)
    assert not hub_models.trusted()
    monkeypatch.setenv(hub_models.TRUST, "1")
    assert hub_models.trusted()
