"""`{settings}`: every setting of a config, from the schema; and links to it from all pages.

A setting named in backticks, as `rl.apa.lam`, becomes a link to what it means. One that the schema
does not have is a warning: a page that names it is out of date.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from rayward.configs.reference import TOP, Setting, SettingGroup, as_yaml, groups

PAGE = "reference/settings"
GROUPS = list(groups())
SECTIONS = {group.name for group in GROUPS if group.name}
NAMES = SECTIONS | {setting.name for group in GROUPS for setting in group.settings}
DOTTED = re.compile(r"([a-z_]+(?:\.[a-z_0-9]+)+)(: .*)?")
"""A setting in a text, perhaps with a value, as a config on one line has it."""
logger = logging.getLogger(__name__)


class Settings(SphinxDirective):
    """A section a section of the config, and in it a list of its settings."""

    def run(self) -> list[nodes.Node]:
        return [self._section(group) for group in GROUPS]

    def _section(self, group: SettingGroup) -> nodes.section:
        title = nodes.title("", "", nodes.literal(text=group.name or TOP))
        given = f" ({group.given})" if group.given else ""
        section = nodes.section("", title, _paragraph(group.sentence + given))
        section["ids"], section["names"] = [_anchor(group.name)], [_anchor(group.name)]
        self.state.document.note_explicit_target(section)
        if group.settings:
            section += nodes.definition_list("", *map(_described, group.settings))
        return section


def _described(setting: Setting) -> nodes.definition_list_item:
    default = "required" if setting.required else f"default {as_yaml(setting.default)}"
    name = nodes.literal(text=setting.name)
    term = nodes.term("", "", name, ids=[_anchor(setting.name)])
    takes = nodes.paragraph("", "", nodes.emphasis(text=f"{setting.takes}; {default}"))
    meaning = nodes.definition("", takes, _paragraph(setting.sentence))
    return nodes.definition_list_item("", term, meaning)


def _paragraph(text: str) -> nodes.paragraph:
    """A sentence whose names stand between backticks."""
    parts = [
        nodes.literal(text=part) if index % 2 else nodes.Text(part)
        for index, part in enumerate(text.split("`"))
    ]
    return nodes.paragraph("", "", *parts)


def _anchor(name: str) -> str:
    return "-".join(["setting", *name.split(".")]) if name else "setting-top"


class Links(SphinxPostTransform):
    """Names of settings in backticks to links."""

    default_priority = 500

    def run(self, **_: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            # No link in a link, and none in titles, which are shown in the sidebar, too.
            if isinstance(literal.parent, nodes.reference | nodes.title | nodes.term):
                continue
            name = _named(literal.astext())
            if name in NAMES:
                self._link(literal, name)
            elif name and name.partition(".")[0] in SECTIONS:
                logger.warning("no such setting: %s", name, location=literal)

    def _link(self, literal: nodes.literal, name: str) -> None:
        page = self.app.builder.get_relative_uri(self.env.docname, PAGE)
        link = nodes.reference("", "", internal=True, refuri=f"{page}#{_anchor(name)}")
        literal.replace_self(link)
        link += literal


def _named(text: str) -> str | None:
    """The dotted name that a text is, or begins with."""
    found = DOTTED.fullmatch(text)
    return found[1] if found else None


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("settings", Settings)
    app.add_post_transform(Links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
