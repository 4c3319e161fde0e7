"""README and docs are true: what they tell people to run is run, in order, a page at a time, beside
a finished run; settings and messages that they name exist; the site builds.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayward.configs.checks import checked
from rayward.configs.reference import groups
from rayward.configs.schema import Config
from rayward.configs.sections.algorithms import RECIPES
from rayward.data.formats.files import token_rows
from rayward.data.formats.known.formats import FORMATS
from tests.pages import PAGES, ROOT, RUN, SHOWN, Block, Reader, blocks, runnable

TINY = ROOT / "tests" / "tiny.yaml"
FLOORS = ("actors", "algorithms", "cluster", "configs", "data", "pipelines")
DOCS = ROOT / "docs"
ALL = [block for page in PAGES for block in runnable(page)]
FENCE = re.compile(r" *```\S")
SETTINGS = {setting.name for group in groups() for setting in group.settings}
SECTIONS = {group.name for group in groups()}


def pages_with(*marks: str) -> Any:
    """A test a page that has such blocks."""
    pages = list(dict.fromkeys(block.page for block in ALL if block.mark in marks))
    names = [str(page.relative_to(ROOT)) for page in pages]
    return pytest.mark.parametrize("page", pages, ids=names)


@pytest.fixture
def reader(tmp_path: Path, road: Path, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """In a folder with `tiny.yaml` and a finished run of it, as the quickstart leaves one."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    shutil.copytree(road, tmp_path / "runs" / "quickstart", symlinks=True)
    shutil.copy(TINY, tmp_path)
    return Reader(tmp_path)


@pages_with("")
def test_a_page_does_what_it_says(page: Path, reader: Reader) -> None:
    for block in runnable(page):
        if not block.mark:
            reader.run(block)


@pytest.mark.slow
@pages_with("slow")
def test_a_page_does_what_it_says_at_length(page: Path, reader: Reader) -> None:
    """With the blocks before, on which they may build."""
    for block in runnable(page):
        if block.mark != "no-run":
            reader.run(block)


def test_what_is_run_and_what_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    def counted(mark: str) -> str:
        marked = [block for block in ALL if block.mark == mark]
        commands = sum(block.commands for block in marked)
        return f"{len(marked)} blocks ({commands} commands)"

    with capsys.disabled():
        print(f"\ndocs: {counted('')} run, {counted('slow')} in make test-slow", end=", ")
        print(f"{counted('no-run')} not run:")
        for block in ALL:
            if block.mark == "no-run":
                print(f"  {block}: {block.reason}")
    for block in ALL:
        assert not block.mark or len(block.reason) > 5, f"{block}: why?"
    assert sum(not block.mark for block in ALL) > sum(bool(block.mark) for block in ALL)


def test_no_block_is_overlooked() -> None:
    """Against a second look at the page, line by line."""
    for page in PAGES:
        found, text = blocks(page), page.read_text(encoding="utf-8")
        for block in found:
            known = block.language in (*RUN, *SHOWN) or block.language.startswith("{")
            assert known, f"{block}: a block in {block.language!r} is neither run nor shown"
        lines = {number for number, line in enumerate(text.splitlines(), 2) if FENCE.match(line)}
        assert lines <= {block.line for block in found}, page
        marks = re.findall(r"^ *<!-- (?:no-run|slow)", text, re.MULTILINE)
        assert len(marks) == sum(bool(block.mark) for block in found), f"{page}: a mark of no block"


YAML = [block for page in PAGES for block in blocks(page) if block.language == "yaml"]


@pytest.mark.parametrize("block", YAML, ids=map(str, YAML))
def test_configs_in_pages_are_valid(block: Block) -> None:
    given = yaml.safe_load(block.text)
    base: dict[str, Any] = {"model": {"scratch": {}}, "data": {"toyworld": {}}}
    checked(Config.model_validate(base | given))
    for name in _names(given):
        assert name in SETTINGS, f"{block}: {name}"


def _names(value: Any, prefix: str = "") -> Iterator[str]:
    """The settings that a part of a config gives."""
    if prefix in SECTIONS and isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _names(inner, f"{prefix}.{key}" if prefix else key)
    elif prefix in SECTIONS and isinstance(value, list):
        for inner in value:
            yield from _names(inner, prefix)
    else:
        yield prefix


def test_every_algorithm_has_its_formula() -> None:
    text = (DOCS / "rl.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| \[(.+?)\]\(#", text, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(RECIPES)
    for name, title in rows:
        section = text.partition(f"\n### {title}\n")[2].partition("\n### ")[0]
        assert "arXiv:" in section, f"{title}: its source"
        assert "$$" in section or "$A_t" in section, f"{title}: its formula"
        assert f"`rl.{name}`" in section and "Ours: " in section, f"{title}: settings, departures"


def test_every_format_has_its_row() -> None:
    text = (DOCS / "data.md").read_text(encoding="utf-8")
    section = text.partition("\n## Formats\n")[2].partition("\n## ")[0]
    first = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
    named = {name for cell in first for name in re.findall(r"`(\w+)`", cell)}
    assert named == {*FORMATS, token_rows.NAME}


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.+)`$", text, re.MULTILINE)
    assert len(messages) > 30
    sources = [path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")]
    told = [told for path in sources for told in _texts(path)]
    told.append((ROOT / "Makefile").read_text(encoding="utf-8"))
    for message in messages:
        parts = ".*".join(map(re.escape, message.split("…")))
        assert any(re.search(parts, text, re.DOTALL) for text in told), message


def _texts(path: Path) -> Iterator[str]:
    """The strings of a module; what is formatted into one is left out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value for part in node.values if isinstance(part, ast.Constant))
            yield "\0".join(map(str, parts))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning is an error."""
    pytest.importorskip("sphinx", reason="the documentation is built with the CPU set of packages")
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d"]
    done = subprocess.run(
        [*command, str(target / "doctrees"), str(DOCS), str(target / "html")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return target / "html"


def test_the_site_holds_every_page_and_asks_no_network(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        built = site / page.relative_to(DOCS).with_suffix(".html")
        html = built.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=[\"'](?:https?:)?//", html)
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in settings for name in SETTINGS)
    assert 'href="reference/settings.html#setting-rl-apa-lam"' in (site / "rl.html").read_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_no_page_is_wider_than_the_window(site: Path, browser: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for built in sorted(site.rglob("*.html")):
        page.goto(built.as_uri())
        beyond = page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert beyond == 0, f"{built.name} is {beyond} pixels wider than {width}"
    assert all(url.startswith(("file:", "data:")) for url in asked)
    page.close()
