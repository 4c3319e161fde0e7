"""Pages: every reason to put one aside, in its order, and what HTML becomes in Markdown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.clean_pages import COPY_BUTTON, code, generated, page
from rayward.data.cleaning.clean import (
    BLOCKED,
    EMPTY,
    NO_CONTENT,
    NO_HTML,
    PARSER,
    TOO_SHORT,
    WRONG_FORMAT,
    clean_page,
    clean_row,
    markdown,
)
from rayward.data.cleaning.language import language
from rayward.data.cleaning.markup import is_html
from rayward.data.cleaning.near_duplicates import (
    PERMUTATIONS,
    NearDuplicates,
    bands,
    content_hash,
    signature,
)
from rayward.data.cleaning.sieve import Sieve, SieveRules, clean_file, clean_raw
from rayward.data.records import RowError

KATEX = (
    '<span class="math math-inline"><span class="katex"><span class="katex-mathml">'
    '<math xmlns="x"{}><semantics><mrow>'
    "<msub><mi>x</mi><mn>1</mn></msub></mrow>"
    '<annotation encoding="application/x-tex">x_1*y</annotation></semantics>'
    '</math></span><span class="katex-html" aria-hidden="true">'
    '<span class="base"><span class="mord">x</span><span>1'
    "</span></span></span></span></span>"
)


def said(*values: str, first: str = "human") -> list[dict[str, Any]]:
    """Messages in turn."""
    speakers = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": speakers[index % 2], "value": value} for index, value in enumerate(values)]


def refused(html: str | bytes, **rules: Any) -> RowError:
    with pytest.raises(RowError) as caught:
        clean_page(html if isinstance(html, bytes) else html.encode(), **rules)
    return caught.value


def script(text: str) -> str:
    return (
        '<html><body><script id="__NEXT_DATA__" '
        f'type="application/json">{text}</script></body></html>'
    )


def test_a_page_becomes_a_conversation_with_its_labels() -> None:
    found = clean_page(page(said("Hi?", "<div><p>Hello <em>you</em>!</p></div>")).encode())
    assert found.as_row() == {
        "id": "a1B2c3D",
        "model": "Model: GPT-4",
        "views": 7,
        "items": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello *you*!"}],
    }
    assert clean_page(b"\xef\xbb\xbf" + page(said("a", "b"), model=None).encode()).model == ""


@pytest.mark.parametrize(
    "html",
    [
        "<html><body>Just a page</body></html>",
        "",
        page(None),  # what the site answers for a conversation that is gone: no content
        script("{broken"),
        script("[1]"),
        script("[" * 100_000),
        script('{"props": {"pageProps": null}}'),
        script('{"props": {"pageProps": {"content": {"items": "none"}}}}'),
        b"<html>\xff" + page(said("a", "b")).encode(),
    ],
    ids=["no script", "empty", "gone", "broken", "array", "deep", "null", "no list", "not UTF-8"],
)
def test_no_content(html: str | bytes) -> None:
    assert refused(html).reason == NO_CONTENT


@pytest.mark.parametrize(
    "items",
    [
        [],
        said("a"),
        said("a", "b", first="gpt"),  # the first goes, one is left
        said("a", "b", "c", first="gpt")[:2],
        [*said("a"), {"from": "human", "value": "b"}],  # the last goes
    ],
)
def test_too_short(items: list) -> None:
    assert refused(page(items)).reason == TOO_SHORT


@pytest.mark.parametrize(
    ("items", "where"),
    [
        ([*said("a", "b"), {"from": "gpt", "value": "c"}], "items[2].from"),
        ([{"from": "human", "value": "a"}, *said("b", "c")], "items[1].from"),
        ([{"from": "human", "value": "a"}, {"from": "system", "value": "b"}], "items[1].from"),
        ([{"from": "human", "value": "a"}, 7], "items[1].from"),
        ([{"from": "human", "value": "a"}, {"from": "gpt"}], "items[1].value"),
        (said("a", "\ud800"), "items[1].value"),
        ([*said("x", first="gpt"), *said("y", "z", "w", first="gpt")], "items[0].from"),
    ],
)  # fmt: skip
def test_wrong_format(items: list, where: str) -> None:
    error = refused(script(json.dumps({"props": {"pageProps": {"content": {"items": items}}}})))
    assert (error.reason, error.field) == (WRONG_FORMAT, where)


def test_a_leading_answer_and_trailing_questions_are_dropped() -> None:
    assert clean_page(page(said("a", "b", "c", "d", first="gpt")).encode()).items == (
        ("human", "b"),
        ("gpt", "c"),
    )
    assert [text for _, text in clean_page(page(said("a", "b", "c")).encode()).items] == ["a", "b"]
    assert len(clean_page(page([*said("a", "b"), *said("c"), *said("d")]).encode()).items) == 2
    assert refused(page([*said("a"), *said("c"), *said("d")])).reason == TOO_SHORT


def test_blocked_words_are_looked_for_in_the_html_in_any_case() -> None:
    assert refused(page(said("Who made you?", "<p>Open<b>AI</b> or OPENAI.</p>"))).reason == BLOCKED
    assert refused(page(said("a", '<a href="https://openai.com">it</a>'))).reason == BLOCKED
    assert clean_page(page(said("a", "<p>Open<b>AI</b></p>")).encode()).items[1] == (
        "gpt",
        "Open**AI**",
    )
    assert clean_page(page(said("a", "OpenAI")).encode(), ()).items[1] == ("gpt", "OpenAI")
    assert refused(page(said("Moon?", "b")), blocked_words=("sun", "MOON")).found == "'moon'"
    # A message that is dropped blocks nothing, and form is looked at before words.
    assert clean_page(page(said("a", "b", "openai?")).encode()).items == (
        ("human", "a"),
        ("gpt", "b"),
    )
    assert (
        refused(page([*said("a", "openai"), {"from": "gpt", "value": "c"}])).reason == WRONG_FORMAT
    )


def test_html_that_the_parser_rejects_is_a_parser_error() -> None:
    assert refused(page(said("a", "<p>x</p><![foo[bar]]>"))).reason == PARSER
    assert refused(page(said("a", "<b>" * 5000 + "x"))).reason == PARSER
    # Words come before parsing.
    assert refused(page(said("a", "<![foo[bar]]> openai"))).reason == BLOCKED


def test_a_message_of_which_nothing_is_left_is_refused() -> None:
    assert refused(page(said("a", "<p>1 / 2</p>"))).reason == EMPTY
    assert refused(page(said("  ", "b"))).field == "items[0].value"


# ---- Markdown
# ----------------------------------------------------------------------------------------------

PYTHON = "def f(a_b):\n    return a_b * 2"
MARKDOWN = {
    "code": (code("python", PYTHON), f"```python\n{PYTHON}\n```"),
    "code in text": (
        f"<p>So:</p>{code('sql', 'a')}<p>and</p>{code('c', 'b')}",
        "So:\n\n```sql\na\n```\n\nand\n\n```c\nb\n```",
    ),
    "code without a label": (
        f"<pre><div>{COPY_BUTTON}</div><code>ls *\n</code></pre>",
        "```\nls *\n```",
    ),
    "button twice": (
        f"<pre>bash{COPY_BUTTON}{COPY_BUTTON}<code>ls</code></pre>",
        "```bash\nls\n```",
    ),
    "plain block, then code": (
        "<pre><code>one\ntwo</code></pre><p>x</p>" + code("c", "b"),
        "```\none\ntwo\n```\n\nx\n\n```c\nb\n```",
    ),
    "empty code": ("<p>a</p><p>```bashCopy code```</p>", "a"),
    "HTML in code": (code("html", "<b>x</b> &amp;"), "```html\n<b>x</b> &amp;\n```"),
    "version counter": ("<div><p>1 / 2</p><p>Hello 3 / 4</p></div>", "Hello 3 / 4"),
    "copy counter": ("<p>Hello</p><div>Copy12 chars / 3 words</div>", "Hello"),
    "nested list": (
        "<ol>\n<li><p>One</p>\n<ul>\n<li>a</li>\n<li>b</li>\n</ul>\n</li>\n<li>Two</li>\n</ol>",
        "1. One\n\n   * a\n   * b\n2. Two",
    ),
    "table": (
        "<table><thead><tr><th>A</th><th>B</th></tr></thead><tbody><tr><td>1</td><td>x_y</td></tr></tbody></table>",
        "| A | B |\n| --- | --- |\n| 1 | x\\_y |",
    ),
    "inline math": (f"<p>Sum {KATEX.format('')} ok.</p>", "Sum $x_1*y$ ok."),
    "display math": (
        "<p>Sum</p>" + KATEX.format(' display="block"') + "<p>ok.</p>",
        "Sum\n\n$$x_1*y$$\n\nok.",
    ),
    "plain math": ("<p>\\(a^2\\) and $x$</p>", "\\(a^2\\) and $x$"),
    "a tag's >": ("<div class=\"[&>p]:m-0\">a<span title='>'>b</span></div>", "ab"),
    "plain text": (
        "Fix:\n\nfor x in y:\n  f(x)\n\n\n\nThanks",
        "Fix:\n\nfor x in y:\n f(x)\n\nThanks",
    ),
    "pasted script": (
        "See <script>let a = 1</script> and <style>b {}</style>",
        "See let a = 1 and b {}",
    ),
    "a < b": ("a < b, c > d & e", "a < b, c > d & e"),
    "inline": (
        "<p>a <strong>b</strong> <em>c</em> <code>d_e</code> <a href='http://f.g'>h</a><br>i</p>",
        "a **b** *c* `d_e` [h](http://f.g)  \ni",
    ),
    "headings": ("<h1>A</h1><h3>B</h3><blockquote><p>q</p></blockquote>", "A\n=\n\n### B\n\n> q"),
}


@pytest.mark.parametrize("name", MARKDOWN)
def test_markdown(name: str) -> None:
    html, expected = MARKDOWN[name]
    assert markdown(html) == expected


# What OpenChat's steps make of the same HTML with markdownify 0.11.6, recorded.
ORIGINAL = {
    "code": "```python\ndef f(a_b):\n    return a_b * 2\n```",
    "code in text": "So:\n```sql\na\n```\nand\n```c\nb\n```",
    "version counter": "Hello 3 / 4",
    "copy counter": "Hello",
    "nested list": "1. One\n\t* a\n\t* b\n2. Two",
    "table": "| A | B |\n| --- | --- |\n| 1 | x\\_y |",
    "plain math": "\\(a^2\\) and $x$",
    "plain text": "Fix:\n\nfor x in y:\n f(x)\n\nThanks",
    "pasted script": "See let a = 1 and b {}",
    "a < b": "a < b, c > d & e",
    "inline": "a **b** *c* `d_e` [h](http://f.g)  \ni",
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_differs_in_blank_lines_and_indents_of_lists_only(name: str) -> None:
    def bare(text: str) -> str:
        return re.sub(r"^(\t|   )(?=\* )", "", re.sub(r"\n+", "\n", text), flags=re.MULTILINE)

    assert bare(markdown(MARKDOWN[name][0])) == bare(ORIGINAL[name])


def test_long_hostile_messages_take_time_in_proportion() -> None:
    def took_s(piece: str, count: int) -> float:
        begun = time.process_time()
        markdown(piece * count)
        return time.process_time() - begun

    for piece in ("```", "``` Copy code", "Copy1 chars / ", "`` ", "1 / 2", "&lt;", "a\n\n\n"):
        assert took_s(piece, 20_000) < 10, piece


# ---- equality, nearness, language
# --------------------------------------------------------------------------

ITEMS = [("human", "Wie heißt du?"), ("gpt", "Anna.")]


def test_the_content_hash_is_the_same_in_every_process() -> None:
    expected = "2ae6bbb580ef40e3"
    program = "from rayward.data.cleaning.near_duplicates import content_hash, signature; "
    program += f"items = {ITEMS!r}; print(content_hash(items), signature(items).hex())"
    for salt in ("0", "1"):
        environment = os.environ | {
            "PYTHONHASHSEED": salt,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.split() == [content_hash(ITEMS), signature(ITEMS).hex()]
    assert content_hash(ITEMS).startswith(expected)
    others = [
        [("human", "Wie heißt du?Anna."), ("gpt", "")],
        [("gpt", ITEMS[0][1]), ("human", "Anna.")],
        ITEMS[:1],
    ]
    assert len({content_hash(other) for other in (ITEMS, *others)}) == 4


def words(*numbers: int) -> list[tuple[str, str]]:
    return [("human", "q"), ("gpt", " ".join(f"w{number}" for number in numbers))]


def test_near_duplicates_are_found_by_their_similarity() -> None:
    base = words(*range(400))
    changed = words(*range(390), *range(1000, 1010))  # 386 runs of 397 + 10 shared: 0.95
    half = words(*range(200), *range(2000, 2200))
    near = NearDuplicates(0.8)
    assert near.find_or_add("base", signature(base)) is None
    found = near.find_or_add("changed", signature(changed))
    assert found is not None and found[0] == "base" and found[1] == pytest.approx(0.95, abs=0.05)
    assert near.find_or_add("half", signature(half)) is None
    assert near.find_or_add("half again", signature(half)) == ("half", 1.0)
    # What was found is not kept: it takes nothing with it.
    assert set(near.kept) == {"base", "half"}
    signs = NearDuplicates(0.8)
    for name, said in (("smile", "😀😀😀"), ("shout", "!!!"), ("ask", "???")):
        assert signs.find_or_add(name, signature([("human", said), ("gpt", said)])) is None
    assert NearDuplicates(0.97).find_or_add("a", signature(changed)) is None


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95])
def test_no_pair_at_the_threshold_is_missed(threshold: float) -> None:
    number, size = bands(threshold)
    assert number * size <= PERMUTATIONS and 1 - (1 - threshold**size) ** number >= 0.999
    rng, near = np.random.default_rng(0), NearDuplicates(threshold)
    equal = int(np.ceil(threshold * PERMUTATIONS))
    for index in range(100):
        numbers = rng.integers(0, 2**32 - 1, PERMUTATIONS, dtype=np.uint32)
        changed = numbers.copy()
        changed[rng.permutation(PERMUTATIONS)[equal:]] += 1
        assert near.find_or_add(f"{index}", numbers.tobytes()) is None
        assert near.find_or_add(f"{index} changed", changed.tobytes()) == (
            f"{index}",
            equal / PERMUTATIONS,
        )
        changed[numbers == changed] += 1  # nothing in common
        assert near.find_or_add(f"{index} other", changed.tobytes()) is None


@pytest.mark.parametrize("threshold", [0, 1, -1, float("nan")])
def test_thresholds_outside_0_and_1_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        NearDuplicates(threshold)
    with pytest.raises(ValueError, match="between 0 and 1"):
        SieveRules(near_duplicates=threshold).check()


def test_languages_are_told_by_the_prose() -> None:
    english = "Please write a function that sorts a list of names, and explain how it works."
    german = "Bitte schreibe eine Funktion, die eine Liste von Namen sortiert, und erkläre sie."
    python = "```python\nfor name in sorted(names): print(name)\n```"
    for text, code_ in ((english, "en"), (german, "de"), ("请写一个函数对姓名列表进行排序", "zh")):
        assert language([text, f"{python}\n"]) == code_
    assert language(["?", python]) == "und"
    with pytest.raises(ValueError, match=r"'english' is not known; known are .*\bde, .*\ben, "):
        SieveRules(language="english").check()


# ---- the sieve
# ---------------------------------------------------------------------------------------------


def sift(folder: Path, rules: SieveRules) -> tuple[list[dict], list[dict]]:
    sieve, kept, bad = Sieve(rules), [], []
    for file in sorted(folder.iterdir()):
        line, refusal = sieve.decide(file.name, clean_file(str(file), rules))
        bad.append(refusal) if refusal else kept.append(json.loads(line))
    assert sieve.written == len(kept) and sieve.rejected.total() == len(bad)
    return kept, bad


def test_of_equal_pages_the_first_stays_and_equality_is_of_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        page(said("q", "<p>x</p>"), id="1", model="Model: Default (GPT-3.5)")
    )
    (tmp_path / "b.html").write_text(
        page(said("q", "<div><p>1 / 2</p><p>x</p></div>", "more?"), id="2")
    )
    (tmp_path / "c.html").write_text(page(said("q", "y"), id=""))
    kept, bad = sift(tmp_path, SieveRules())
    assert [row["id"] for row in kept] == ["1", "c"]  # the file's name where the page has no id
    assert [(row["file"], row["reason"], row["found"]) for row in bad] == [
        ("b.html", "duplicate", "the conversation of a.html")
    ]
    # As in OpenChat, equal pages go before the model is looked at.
    kept, bad = sift(tmp_path, SieveRules(model="Model: GPT-4"))
    assert [row["id"] for row in kept] == ["c"] and [row["reason"] for row in bad] == [
        "other model",
        "duplicate",
    ]


def test_a_page_that_is_filtered_out_takes_no_similar_one_with_it(tmp_path: Path) -> None:
    long = [f"w{number}" for number in range(300)]
    (tmp_path / "a.html").write_text(
        page(said("q", " ".join(long)), model="Model: Default (GPT-3.5)")
    )
    (tmp_path / "b.html").write_text(page(said("q", " ".join([*long, "end"]))))
    (tmp_path / "c.html").write_text(page(said("q", " ".join([*long, "stop"]))))
    kept, bad = sift(tmp_path, SieveRules(model="Model: GPT-4", near_duplicates=0.8))
    assert len(kept) == 1 and [(row["file"], row["reason"]) for row in bad] == [
        ("a.html", "other model"),
        ("c.html", "near duplicate"),
    ]
    assert re.fullmatch(r"similarity (0\.9\d|1\.00) to b\.html", bad[1]["found"])


def test_files_that_cannot_be_read_are_counted_and_blank_blocked_words_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.html").symlink_to(tmp_path / "nothing")
    _, bad = sift(tmp_path, SieveRules())
    assert bad[0]["reason"] == "unreadable file"
    with pytest.raises(ValueError, match="no letters"):
        SieveRules(blocked_words=("",)).check()


def test_generated_pages_are_clean_markdown() -> None:
    for number in range(20):
        for _, text in clean_page(generated(number).encode()).items:
            assert not re.search(r"Copy code|</?(p|div|span|pre|li|td)\b|\n\n\n", text), text


# ---- raw JSON


def raw(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **more}


def test_a_raw_row_is_cleaned_as_its_page() -> None:
    turns = ("Hi?", "<p>Use <code>x</code></p>", "And?", "<ol><li>One</li></ol>")
    by_page = clean_page(page(said(*turns)).encode())
    speakers = ("human", "gpt", "user", "chatgpt")
    row = raw(*zip(speakers, turns, strict=True), id="a1", model="GPT-4", views=7)
    by_row = clean_row(row)
    assert by_row.items == by_page.items and by_row.items[1] == ("gpt", "Use `x`")
    assert (by_row.id, by_row.model, by_row.views) == ("a1", "GPT-4", 7)
    renamed = {"items": row["conversations"]}
    assert clean_row(renamed).items == by_page.items


@pytest.mark.parametrize(
    "row, reason",
    [
        ([1], NO_CONTENT),
        ({"id": "x"}, NO_CONTENT),
        (RowError("line", "x", "JSON", "broken JSON"), "broken JSON"),
        (raw(("human", "a")), TOO_SHORT),
        (raw(("system", "Be brief."), ("human", "a"), ("gpt", "<p>b</p>")), WRONG_FORMAT),
        (raw(("human", "a"), ("human", "b"), ("gpt", "<p>c</p>")), WRONG_FORMAT),
        (raw(("human", "a"), ("gpt", "As `<p>b</p>` has it, *no* markup.")), NO_HTML),
        (raw(("human", "a"), ("gpt", "<p>OpenAI</p>")), BLOCKED),
        (raw(("human", "a"), ("gpt", "<p>b</p>"), ("human", "c"), ("gpt", " ")), EMPTY),
    ],
)
def test_a_raw_row_is_put_aside_with_its_reason(row: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        clean_row(row)
    assert caught.value.reason == reason


def test_a_raw_row_without_an_id_is_named_by_its_place() -> None:
    made = clean_raw("raw.json:3", raw(("human", "a"), ("gpt", "<p>b</p>")), SieveRules())
    assert json.loads(str(made["row"]))["id"] == "raw.json:3"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("<p>Hello</p>", True),
        (' <div class="markdown prose"><p>Hello</p></div>', True),
        ("<ol>\n<li>One</li></ol>", True),
        ("Use <p> for a paragraph: <p>x</p>", False),
        ("```html\n<p>x</p>\n```", False),
        ("<p> opens a paragraph", False),
        ("<think>So.</think> Yes.", False),
    ],
)
def test_what_is_html(text: str, answer: bool) -> None:
    assert is_html(text) is answer
