"""`{commands}`: the help of every command, from the parsers of the commands themselves."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from rayward.pipelines.cli import _parser


def _commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The commands, of `rayward data` each of its actions."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _commands(command)
            return
    yield parser


class Commands(SphinxDirective):
    """A section a command: its help as the terminal shows it."""

    def run(self) -> list[nodes.Node]:
        # What argparse lays its help out for.
        os.environ["COLUMNS"] = "88"
        return [self._section(parser) for parser in _commands(_parser())]

    def _section(self, parser: argparse.ArgumentParser) -> nodes.section:
        shown = nodes.literal_block(text=parser.format_help().rstrip(), language="text")
        title = nodes.title("", "", nodes.literal(text=parser.prog))
        section = nodes.section("", title, shown, ids=[nodes.make_id(parser.prog)])
        section["names"] = [parser.prog]
        self.state.document.note_explicit_target(section)
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
