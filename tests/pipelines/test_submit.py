"""What `rayward submit` would hand over, and what it refuses before any cluster is asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rayward.cluster.connect import FORWARDED_VARIABLES
from rayward.configs.load import load
from rayward.pipelines.cli import main
from rayward.pipelines.cluster_tools.submit import OURS, collect

TINY = Path(__file__).parents[1] / "tiny.yaml"
ROWS = ("conversations", "preferences", "prompts")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with more than should go along, where the command runs."""
    shutil.copy(TINY, tmp_path / "tiny.yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "rewards.py").write_text("def short(completions, **_):\n    return [0.0]\n")
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", *FORWARDED_VARIABLES, *OURS):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def submit(*more: str, run: str = "/shared/runs/x") -> int:
    return main(["submit", "tiny.yaml", "--run", run, "--dry-run", *more])


def test_what_is_handed_over_is_small_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_TOKEN", "HF_HOME", "NOT_OURS", "GIVEN"):
        monkeypatch.setenv(name, "value")
    source = "{kind: function, target: 'rewards:short'}"
    more = ["--set", f"scoring.sources=[{source}]", "--redo", "rl", "--keep"]
    assert submit(*more, "--env", "GIVEN", "--env", "OTHER=1", run="//shared/a b/../x") == 0
    job, files, variables = capsys.readouterr().out.splitlines()
    assert job == "job:       rayward align config.yaml --run /shared/x --redo rl --keep"
    assert files == "files:     config.yaml, rewards.py"
    assert variables == "variables: GIVEN, HF_TOKEN, OTHER, RAY_JOB_STOP_WAIT_TIME_S"


def test_the_config_that_goes_along_is_the_one_that_is_meant(folder: Path) -> None:
    config = load("tiny.yaml", ["rl.iterations=3", "cluster.address=http://head:8265"])
    (folder / "out").mkdir()
    assert collect(config, folder / "out") == ["config.yaml"]
    sent = load(str(folder / "out" / "config.yaml"))
    # Where the cluster is, the job knows by itself.
    assert sent == load("tiny.yaml", ["rl.iterations=3"])


def test_a_package_of_functions_goes_along_without_what_lies_beside(folder: Path) -> None:
    for name in ("ours/__init__.py", "ours/deep/more.py", "ours/rows.bin", "judge/rate_user.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    sources = (
        "[{kind: function, target: 'ours.deep.more:f'}, "
        "{kind: function, name: rules, target: 'data.rules:exact'}, "
        "{kind: judge, target: 'm@http://h/v1', prompts: judge}]"
    )
    (folder / "out").mkdir()
    names = collect(load("tiny.yaml", [f"scoring.sources={sources}"]), folder / "out")
    assert names == [
        "config.yaml",
        "judge/rate_user.txt",
        "ours/__init__.py",
        "ours/deep/more.py",
    ]
    assert all((folder / "out" / name).is_file() for name in names)


DATA = [
    "evaluate=null",
    "data.toyworld=null",
    *(f"data.{name}=[{{path: rows.jsonl}}]" for name in ROWS),
]


@pytest.mark.parametrize(
    ("settings", "more", "words"),
    [
        ([], ["--run", "runs/x"], "the run folder would be runs/x, which goes with the job"),
        (["model={path: ./base}"], [], "model.path is ./base: a path of this machine"),
        ([*DATA, "data.root=data"], [], "data.root is data: a path of this machine"),
        (["scoring.functions=../other"], [], "scoring names ../other"),
        ([], ["--run", "//"], "--run is //, all of the disk"),
        ([], ["--env", "NOT_SET_HERE"], "no such variable is set here"),
        ([], ["--env", "=1"], "--env =1: expected NAME or NAME=VALUE, found the name ''"),
        ([], ["--env", "A B=1"], "found the name 'A B'"),
        ([], ["--stages", "sftt"], "unknown stage 'sftt'"),
        ([], ["--attach", "job"], "either CONFIG or --attach JOB_ID"),
        (["rl.iteration=3"], [], "did you mean"),
    ],
)
def test_what_the_cluster_would_not_have_is_refused(
    settings: list[str], more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = [word for setting in settings for word in ("--set", setting)]
    assert submit(*sets, *more) == 2
    assert words in capsys.readouterr().err
    # With the same data where all nodes see it there is nothing to refuse.
    if settings[:-1] == DATA:
        assert submit(*sets, "--set", "data.root=/shared/data") == 0


def test_without_an_address_there_is_no_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "tiny.yaml", "--run", "/shared/x"]) == 2
    assert "no cluster is named: give --address http://HOST:8265" in capsys.readouterr().err
