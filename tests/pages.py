"""The blocks of code in our pages, and how a reader would run them.

A block in `sh` is commands, in `console` commands after `$ ` with what they print, in `python` code
that goes on from the page's blocks before it. Indented blocks count as commands. A comment in the
line above says of a block that it takes long, `<!-- slow: REASON -->`, or cannot be run here,
`<!-- no-run: REASON -->`.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL = ("sh", "console")
RUN = (*SHELL, "python")
SHOWN = ("yaml", "text")
"""Languages of blocks that nobody runs."""
MARK = re.compile(r"<!-- (no-run|slow): (.+?) -->\s*")
HEREDOC = re.compile(r"<<-?'?(\w+)'?")
PRINTED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A block of a page; `line` is that of its first line of text."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    """"no-run", "slow", or "" for one that is run."""
    reason: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> int:
        """How many commands it holds; of Python 1."""
        if self.language == "python":
            return 1
        if self.language == "console":
            return len(dialogue(self.text))
        count, end = 0, None
        for before, line in zip(
            ["", *self.text.splitlines()], self.text.splitlines(), strict=False
        ):
            if end:
                end = None if line == end else end
            elif line.strip() and not line.startswith("#"):
                count += not before.endswith("\\")
                opened = HEREDOC.search(line)
                end = opened[1] if opened else None
        return count


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in order."""
    found, mark = [], None
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            mark = MARK.fullmatch(token.content)
        elif token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else "sh"
            assert token.map is not None
            line = token.map[0] + (2 if token.type == "fence" else 1)
            kind, reason = (mark[1], mark[2]) if mark else ("", "")
            found.append(Block(page, line, language, token.content, kind, reason))
            mark = None
        elif mark:
            mark = None
    return found


def runnable(page: Path) -> list[Block]:
    """Those of them that a reader would run."""
    return [block for block in blocks(page) if block.language in RUN]


def dialogue(text: str) -> list[tuple[str, str]]:
    """(command, what it prints) of a block in `console`."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in parts)]


class Reader:
    """Runs a page's blocks one after the other, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, Any] = {"__name__": "__main__"}
        commands = folder / ".bin"
        commands.mkdir()
        shim = commands / "rayward"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m rayward.pipelines.cli "$@"\n')
        shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
        self.environment = os.environ | {
            "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
        }

    def run(self, block: Block) -> None:
        """AssertionError, with the place, where it fails or prints something else."""
        if block.language == "python":
            self._python(block)
        elif block.language == "sh":
            self._shell(block, block.text)
        else:
            for command, printed in dialogue(block.text):
                got = self._shell(block, command)
                same = doctest.OutputChecker().check_output(printed, got, PRINTED)
                assert same, f"{block}: $ {command}\nprinted\n{got}\nand the page has\n{printed}"

    def _shell(self, block: Block, text: str) -> str:
        with subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as shell:
            try:
                printed, _ = shell.communicate(timeout=300)
            except BaseException:
                # With what it started.
                os.killpg(shell.pid, signal.SIGKILL)
                raise
        assert shell.returncode == 0, f"{block}: status {shell.returncode}\n{printed[-3000:]}"
        return printed

    def _python(self, block: Block) -> None:
        """In this process, from the folder: what a test session has imported already is not read
        again for each page.
        """
        # Line numbers of a traceback are those of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(block.page), "exec")
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()):
            exec(code, self.names)
