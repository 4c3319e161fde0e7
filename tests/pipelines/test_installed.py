"""What `make install` installs and how it checks it: the locks, and that a module that does not
load is named.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from rayward.pipelines.installed import failures, main, modules, torch_build

ROOT = Path(__file__).parents[2]


def entries(kind: str) -> dict[str, tuple[str, str, list[str]]]:
    """Package -> (operator, version, hashes) of requirements/KIND.lock."""
    found: dict[str, tuple[str, str, list[str]]] = {}
    name = ""
    for line in (ROOT / "requirements" / f"{kind}.lock").read_text().splitlines():
        if pinned := re.fullmatch(r"([a-z0-9-]+)(={2,3})(\S+) \\", line):
            name, operator, version = pinned.groups()
            found[name] = (operator, version, [])
        elif line.startswith("    --hash="):
            found[name][2].append(line.removeprefix("    --hash=").removesuffix(" \\"))
        else:
            assert line.startswith(("#", "    #")), (
                f"neither a pin with hashes nor a comment: {line}"
            )
    return found


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_each_package_of_a_lock_has_one_version_and_the_hashes_of_its_files(kind: str) -> None:
    locked = entries(kind)
    assert len(locked) > 200
    for name, (_, _, hashes) in locked.items():
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), name


def test_no_build_for_cpus_passes_for_a_package_of_the_gpu_lock() -> None:
    locked = entries("gpu")
    for name in ("torch", "torchvision", "torchaudio", "torchcodec"):
        operator, version, _ = locked[name]
        assert (operator, "+" in version) == ("===", False), (
            f"{name}{operator}{version} also takes {version}+cpu"
        )
    assert entries("cpu")["torch"][1].endswith("+cpu")


def test_pyproject_and_the_locks_pin_the_same_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for kind in ("cpu", "gpu"):
        locked = entries(kind)
        lines = extras[kind] + extras["stack"]
        pins = [re.fullmatch(r"([a-z-]+)(?:\[.*\])?==([^,\s]+)(?:,\S+)?", line) for line in lines]
        assert {pin[1] for pin in pins if pin} >= {"torch", "ray", "deepspeed", "transformers"}
        for pin in filter(None, pins):
            assert locked[pin[1]][1].removesuffix("+cpu") == pin[2], (kind, pin[0])


def test_the_lock_of_lm_eval_adds_to_either_set_and_changes_nothing_of_it() -> None:
    added = entries("eval")
    assert all(hashes for _, _, hashes in added.values())
    of_sets = [entries(kind) for kind in ("cpu", "gpu")]
    for there in of_sets:
        for name in added.keys() & there.keys():
            assert added[name][1] == there[name][1], name
    assert not added.keys() & of_sets[0].keys() & of_sets[1].keys()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    version = added["lm-eval"][1]
    assert extras["eval"] == [f"lm-eval[api,ifeval]=={version}"]
    assert extras["eval"][0] in (ROOT / "requirements" / "eval.in").read_text()


def test_what_is_installed_without_an_extra_is_used_without_one() -> None:
    """Actors need Ray, which comes with `stack`; what only they import belongs there."""
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    base = {re.split("[<>=]", line)[0].replace("pyyaml", "yaml") for line in lines}
    files = [
        path for floor in ("configs", "data", "pipelines") for path in ROOT.glob(f"{floor}/**/*.py")
    ]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    used = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE))
    assert base <= used, f"only actors import {sorted(base - used)}"


def test_a_wheel_s_metadata_can_be_read() -> None:
    """In `torch===2.13.0; extra == "gpu"` the semicolon belongs to the version, and pip installs no
    such wheel.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert not [line for lines in extras.values() for line in lines if "===" in line]


def test_a_module_that_does_not_load_is_named_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor = tmp_path / "broken_package" / "floor"
    floor.mkdir(parents=True)
    (floor.parent / "__init__.py").touch()
    (floor / "__init__.py").touch()
    (floor / "fine.py").touch()
    (floor / "unfit.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    names = modules("broken_package", ["floor"])
    inside = ["broken_package.floor.fine", "broken_package.floor.unfit"]
    assert names == ["broken_package", "broken_package.floor", *inside]
    assert failures(names) == [
        "broken_package.floor.unfit: RuntimeError: operator torchvision::nms does not exist"
    ]


def test_torch_of_the_other_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rayward.pipelines.installed.modules", lambda: ["rayward.configs"])
    kind, words = torch_build()
    other = {"cpu": "gpu", "gpu": "cpu"}[kind]
    assert main(kind) == 0
    assert capsys.readouterr().out == f"{words}; 1 of 1 modules load\n"
    assert main(other) == 1
    assert f"requirements/{other}.lock was installed and this is {words}" in capsys.readouterr().err
