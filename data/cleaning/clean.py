"""From a saved ShareGPT page, or a row of its raw JSON, to a conversation in Markdown, or to the
reason why not.

The rules and their order are those of OpenChat's `clean_sharegpt` (which takes its patterns from
FastChat): the page's `__NEXT_DATA__` gives HTML messages; too short, roles that do not alternate
and blocked words (looked for in the HTML) put a page aside; what is left becomes Markdown, with the
site's buttons and counters taken out.

Departures, each because the original loses or garbles text:
* The script is cut out of the page as text, so that no tag of the conversation, drawn above it, can
  hide it.
* Every question at the end that has no answer is dropped, not one only.
* A label of a code block ends at the next back-tick. There, it could start in one block and end in
  another.
* A tag ends at its own ">", not at the first one, which may stand in an attribute
  (`class="[&>p]:m-0"`).
* A formula of KaTeX, which a page holds three times over, becomes its TeX source once, as `$...$`
  or `$$...$$`.
* A message of which nothing is left, text that is not Unicode and HTML nested too deeply have
  reasons of their own or count as a parser error; a broken page never stops a run. The original ran
  on markdownify 0.11.6. The newer one used here indents nested lists by spaces, not tabs, and puts
  one blank line around blocks, where three line ends became one; its joining of paragraphs in plain
  text, and its dropping of scripts that a person pasted, are undone. A test compares what both make
  of the same messages.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
from bs4.element import NavigableString, Tag
from bs4.exceptions import ParserRejectedMarkup
from markdownify import MarkdownConverter

from rayward.data.cleaning.markup import is_html
from rayward.data.records import RowError, describe, surrogate_in

NO_CONTENT = "unable to extract content"
TOO_SHORT = "conversation too short"
WRONG_FORMAT = "wrong format"
BLOCKED = "contains blocked words"
PARSER = "parser error"
EMPTY = "empty message"
NO_HTML = "answers are not HTML"
# Names that raw files have beside human and gpt, of other chats that were shared.
SPEAKERS = {"user": "human", "assistant": "gpt"} | dict.fromkeys(("chatgpt", "bing", "bard"), "gpt")
BLOCKED_WORDS = ("openai",)

NEXT_DATA = re.compile(
    r'<script\b[^>]*\bid="__NEXT_DATA__"[^>]*>(.*?)</script', re.DOTALL | re.IGNORECASE
)
# Quantifiers that never give back (`*+`, `++`) keep the time in proportion to the text: pages are
# other people's, and may be made to be slow.
QUOTED = r""""[^"]*+"|'[^']*+'"""
DIV_OR_SPAN = re.compile(rf"<(?:div|span)(?:(?:{QUOTED}|[^<>\"'])*+|[^<>]*)>")
CODE_LABEL = re.compile(r"```\s*([^`]*?)(?:Copy code)++(.+?)\s*?```", re.DOTALL)
VERSION_COUNTER = re.compile(r"\A\d+ / \d+")
COPY_COUNTER = re.compile(r"Copy\d+ chars / \d+ words")
EMPTY_CODE = re.compile(r"```([^`\n]*?)Copy code\s*```")

Message = tuple[str, str]
"""Who speaks, "human" or "gpt", and the text."""

# Messages that are just a file name or an address are text here, too.
warnings.filterwarnings("ignore", category=MarkupResemblesLocatorWarning)


@dataclass(frozen=True, slots=True)
class Page:
    """A cleaned conversation that starts with the human, alternates and ends with the model."""

    items: tuple[Message, ...]
    id: str = ""
    model: str = ""
    views: int | None = None

    def as_row(self) -> dict[str, Any]:
        """The page as a ShareGPT row with its "items"; what it does not say is left out."""
        labels = {"id": self.id, "model": self.model, "views": self.views}
        known = {name: value for name, value in labels.items() if value is not None and value != ""}
        return known | {"items": [{"from": speaker, "value": text} for speaker, text in self.items]}


def clean_page(page: bytes, blocked_words: Sequence[str] = BLOCKED_WORDS) -> Page:
    """The conversation of a saved page. `blocked_words` may stand anywhere in the messages' HTML.

    Upper and lower case are the same. Raises RowError, whose `reason` is the first of these that
    applies: NO_CONTENT, TOO_SHORT, WRONG_FORMAT, BLOCKED, PARSER, EMPTY.
    """
    properties = _page_properties(page)
    return _cleaned(properties, properties["content"], blocked_words)


def clean_row(value: object, blocked_words: Sequence[str] = BLOCKED_WORDS) -> Page:
    """The conversation of a row of ShareGPT's raw JSON, whose answers are HTML.

    {"id", "conversations" or "items": [{"from": "human" or "gpt", "value"}]}, as FastChat's and
    OpenChat's pipelines start from. Raises as `clean_page`; where no answer is HTML, too, since
    what is Markdown already would get escapes.
    """
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, dict):
        raise RowError("row", describe(value), "an object", NO_CONTENT)
    name = "items" if value.get("conversations") is None else "conversations"
    items = value.get(name)
    if not isinstance(items, list):
        raise RowError(name, describe(items), "a list", NO_CONTENT)
    entries = [item if isinstance(item, dict) else {} for item in items]
    # A page has none; `_alternating` would drop it as the end of an earlier chat.
    if any(entry.get("from") == "system" for entry in entries):
        raise RowError(f"{name}[0].from", "'system'", "'human' or 'gpt'", WRONG_FORMAT)
    speakers = [SPEAKERS.get(str(entry.get("from")), entry.get("from")) for entry in entries]
    named = [
        {"from": speaker, "value": entry.get("value")}
        for speaker, entry in zip(speakers, entries, strict=True)
    ]
    answers = [str(entry["value"]) for entry in named if entry["from"] == "gpt"]
    if answers and not any(map(is_html, answers)):
        raise RowError(name, describe(answers[0]), "answers in HTML", NO_HTML)
    return _cleaned(value, {"items": named, "model": value.get("model")}, blocked_words)


def _cleaned(
    properties: Mapping[str, Any], content: Mapping[str, Any], blocked_words: Sequence[str]
) -> Page:
    """The conversation of `content`, whose "items" are HTML; labels may stand in either."""
    messages = _alternating(content["items"])
    words = [word.lower() for word in blocked_words]
    # Before the conversion, which is by far the most work, and in a loop of its own: the reasons
    # keep their order whichever message has which fault.
    for index, (_, html) in enumerate(messages):
        lowered = html.lower()
        for word in words:
            if word in lowered:
                raise RowError(
                    f"items[{index}].value", repr(word), "none of the blocked words", BLOCKED
                )
    items = []
    for index, (speaker, html) in enumerate(messages):
        where = f"items[{index}].value"
        # Python's HTML parser refuses some broken markup by an assertion.
        try:
            text = markdown(html)
        except (ParserRejectedMarkup, AssertionError) as error:
            raise RowError(where, str(error).rpartition("\n")[2][:80], "HTML", PARSER) from None
        except RecursionError:
            raise RowError(where, "tags nested too deeply", "HTML", PARSER) from None
        if not text:
            raise RowError(where, describe(html), "a message with text", EMPTY)
        items.append((speaker, text))
    label = content.get("model")
    views = properties.get("views", content.get("views"))
    return Page(
        tuple(items),
        _label(properties.get("id", content.get("id"))),
        label if isinstance(label, str) and not surrogate_in(label) else "",
        views if isinstance(views, int) and not isinstance(views, bool) else None,
    )


def _page_properties(page: bytes) -> Mapping[str, Any]:
    """`props.pageProps` of the page, which has a `content` that has a list of `items`."""
    try:
        text = page.decode("utf-8-sig")  # with or without a BOM
    except UnicodeDecodeError as error:
        found = f"byte {page[error.start]:#x} at {error.start}"
        raise RowError("page", found, "UTF-8", NO_CONTENT) from None
    scripts = NEXT_DATA.findall(text)
    if not scripts:
        raise RowError("page", "no such tag", '<script id="__NEXT_DATA__">', NO_CONTENT)
    try:
        # The page's own script is the last: one in the text of the conversation comes before it.
        value = json.loads(scripts[-1])
    except (ValueError, RecursionError) as error:
        raise RowError("__NEXT_DATA__", str(error)[:80], "JSON", NO_CONTENT) from None
    path = "__NEXT_DATA__"
    properties: Any = None
    for key in ("props", "pageProps", "content"):
        if not isinstance(value, dict) or not isinstance(value.get(key), dict):
            found = describe(value.get(key) if isinstance(value, dict) else value)
            raise RowError(f"{path}.{key}", found, "an object", NO_CONTENT)
        properties, value, path = value, value[key], f"{path}.{key}"
    if not isinstance(value.get("items"), list):
        raise RowError(f"{path}.items", describe(value.get("items")), "a list", NO_CONTENT)
    return properties


def _alternating(items: Sequence[Any]) -> list[Message]:
    """Messages from the first of the human to the last of the model, in turn."""
    # An item that is no object counts as one without a speaker.
    entries = [item if isinstance(item, dict) else {} for item in items]
    _check_length(entries)
    if entries[0].get("from") != "human":
        del entries[0]
        _check_length(entries)
    while entries[-1].get("from") == "human":
        del entries[-1]
        _check_length(entries)
    messages = []
    for index, entry in enumerate(entries):
        speaker, html = entry.get("from"), entry.get("value")
        expected = ("human", "gpt")[index % 2]
        if speaker != expected:
            raise RowError(f"items[{index}].from", describe(speaker), expected, WRONG_FORMAT)
        if not isinstance(html, str):
            raise RowError(f"items[{index}].value", describe(html), "text", WRONG_FORMAT)
        if surrogate := surrogate_in(html):
            found = f"\\u{ord(surrogate):04x}"
            raise RowError(f"items[{index}].value", found, "valid Unicode", WRONG_FORMAT)
        messages.append((expected, html))
    return messages


def _check_length(entries: Sequence[Any]) -> None:
    if len(entries) <= 1:
        raise RowError("items", f"{len(entries)} messages", "a question and an answer", TOO_SHORT)


def _label(value: object) -> str:
    """Text or an integer as text; "" for anything else, since a label is no reason to refuse."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() and not surrogate_in(value) else ""


# ---- HTML to Markdown


class _Converter(MarkdownConverter):
    """markdownify with paragraphs of plain text, formulas, and the text of scripts and styles."""

    def process_text(self, el: NavigableString, parent_tags: set[str] | None = None) -> str:
        tags = parent_tags or set()
        joined: str = super().process_text(el, tags)  # type: ignore[misc]  # its stubs leave it out
        if "pre" in tags or not joined.strip():
            return joined
        # markdownify joins lines; messages of the human are plain text, whose line ends are its
        # paragraphs. Space at the ends is as markdownify has it, which knows the blocks around.
        text = re.sub(r"[\t ]+", " ", str(el))
        if "_noformat" not in tags:
            text = self.escape(text, tags)  # type: ignore[attr-defined]
        if not joined[0].isspace():
            text = text.lstrip()
        return text if joined[-1].isspace() else text.rstrip()

    def convert_script(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return text

    convert_style = convert_script

    def convert_math(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        source = el.find("annotation")  # KaTeX puts the TeX source here, inside the MathML
        if source is None:
            return text
        tex = source.get_text().strip()
        return f"\n\n$${tex}$$\n\n" if el.get("display") == "block" else f"${tex}$"


def markdown(html: str) -> str:
    """A message's HTML as Markdown. Raises ParserRejectedMarkup, AssertionError, RecursionError."""
    # Drawn formulas are found by their span, so they go before the spans do.
    if "katex-html" in html:
        html = _without_drawn_formulas(html)
    text = _Converter().convert(DIV_OR_SPAN.sub("", html)).strip()
    # The site's buttons and counters go, in the original's order.
    text = CODE_LABEL.sub(r"```\1\n\2\n```", text)
    text = VERSION_COUNTER.sub("", text)
    text = COPY_COUNTER.sub("", text)
    text = EMPTY_CODE.sub("", text)
    return text.replace("\n\n\n", "\n").strip()


def _without_drawn_formulas(html: str) -> str:
    """KaTeX writes a formula as MathML and then as positioned letters; only the first is kept."""
    soup = BeautifulSoup(html, "html.parser")
    for drawn in soup.select("span.katex-html"):
        drawn.decompose()
    return str(soup)
