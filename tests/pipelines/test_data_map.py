"""`rayward data map`: the account, the page in a real browser without a network, and what odd data
do to it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rayward.data.record_json import to_json
from rayward.data.toy.toyworld import demonstrations, prompts, rankings
from rayward.pipelines.cli import main
from rayward.pipelines.data_tools.map import MapSettings, draw, sample

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT / ".." / "shared" / "data"
EVIL = (
    '</script><img src=x onerror="window.bad=1"><b>bold</b> &lt; <!--<script>window.bad=2</script>'
)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def ask(question: str, answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"kind": "conversation", "turns": turns, **more}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page of 5,000 generated records from two files, and its report.

    Drawn in a process of its own: Ray, which other tests bring into this one, puts a `print` in
    place that numba, which UMAP needs for so many records, cannot compile.
    """
    folder = tmp_path_factory.mktemp("map")
    talk = write(folder / "talk.jsonl", list(map(to_json, demonstrations(4000, seed=1))))
    ranked = write(
        folder / "ranked.jsonl",
        list(map(to_json, rankings(500, 3, 0.1, 1)[0] + prompts(500, 1, "train"))),
    )
    out, report = folder / "map.html", folder / "report.json"
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "data",
        "map",
        talk,
        ranked,
        "--out",
        out,
        "--report",
        report,
    ]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    return out, json.loads(report.read_text())


class Opened:
    """A page opened without a network, which is closed with proof that it asked for nothing and
    nothing went wrong.
    """

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on(
            "console",
            lambda message: self.problems.extend([message.text] * (message.type == "error")),
        )
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.getElementById('plot').data !== undefined")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.problems == []
        assert self.requests and all(url.startswith("file://") for url in self.requests)


def panel(page: Any) -> list[str]:
    texts: list[str] = page.locator("#parts .part p").all_text_contents()
    return texts


def texts_at(where: str) -> list[str]:
    """The texts of the row that the page says it shows, read from its file."""
    file, line = where.split(" · ")[0].rsplit(":", 1)
    row = json.loads(Path(file).read_text().splitlines()[int(line) - 1])
    return [turn["content"] for turn in row["turns"]] + row.get("answers", [])


# The place on the screen of the point that is farthest from all others, and its number.
LONELY = """() => {
  const full = plot._fullLayout, box = plot.getBoundingClientRect(), [xs, ys] = data.at;
  const at = xs.map((x, i) => [
    full.xaxis.l2p(x) + full.xaxis._offset, full.yaxis.l2p(ys[i]) + full.yaxis._offset,
  ]);
  let best = [0, 0];
  at.forEach(([x, y], i) => {
    const near = Math.min(...at.map(([u, v], j) => i === j ? 1e9 : Math.hypot(x - u, y - v)));
    const inside = x > 20 && y > 40 && x < box.width - 20 && y < box.height - 20;
    if (near > best[0] && inside) best = [near, i];
  });
  return [box.x + at[best[1]][0], box.y + at[best[1]][1], best[1]];
}"""


def test_report(drawn: tuple[Path, dict[str, Any]]) -> None:
    path, report = drawn
    assert (report["read"], report["records"], report["drawn"], report["left_out"]) == (
        5000,
        5000,
        5000,
        0,
    )
    assert sum(one["size"] for one in report["clusters"]) == 5000
    sizes = [one["size"] for one in report["clusters"]]
    assert sizes == sorted(sizes, reverse=True) and all(one["terms"] for one in report["clusters"])
    assert -1 < report["silhouette"] < 1 and report["page_bytes"] == path.stat().st_size < 12e6
    assert set(report["seconds"]) == {"read", "embed", "cluster", "place", "write"}
    assert report["versions"].keys() >= {"plotly", "scikit-learn", "umap-learn"}


def test_click_shows_the_conversation(browser: Any, drawn: tuple[Path, dict[str, Any]]) -> None:
    with Opened(browser, drawn[0], viewport={"width": 1400, "height": 900}) as page:
        x, y, number = page.evaluate(LONELY)
        page.mouse.move(x, y)
        page.mouse.click(x, y)
        page.wait_for_function("chosen >= 0")
        assert page.evaluate("chosen") == number
        assert panel(page) == texts_at(page.inner_text("#where"))
        heads = page.locator("#parts h2").all_text_contents()
        assert heads[0] == "user" and page.inner_text("#count") == "5,000 records"


def test_search_finds_counts_marks_and_selects(
    browser: Any, drawn: tuple[Path, dict[str, Any]]
) -> None:
    with Opened(browser, drawn[0]) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "search"
        page.keyboard.type("LEMON")
        page.wait_for_function("found !== null")
        rows = [
            line
            for name in ("talk", "ranked")
            for line in drawn[0].with_name(f"{name}.jsonl").read_text().splitlines()
        ]
        expected = [index for index, row in enumerate(rows) if "lemon" in row.lower()]
        assert page.evaluate("found") == expected and 10 < len(expected) < 1000
        assert page.inner_text("#count") == f"{len(expected)} of 5,000 match"
        sizes = page.evaluate("plot.data.map(trace => [trace.marker.opacity, trace.x.length])")
        assert sizes[0] == [0.15, 5000 - len(expected)]
        assert sum(count for opacity, count in sizes[1:] if opacity == 0.85) == len(expected)
        page.keyboard.press("Enter")
        assert page.evaluate("chosen") == expected[0] and panel(page) == texts_at(
            page.inner_text("#where")
        )
        assert {text.lower() for text in page.locator("#parts mark").all_text_contents()} == {
            "lemon"
        }
        page.get_by_role("button", name="Next").press("Enter")
        assert page.evaluate("chosen") == expected[1] and panel(page) == texts_at(
            page.inner_text("#where")
        )
        page.get_by_role("button", name="Previous").press("Enter")
        assert page.evaluate("chosen") == expected[0]
        page.focus("#search")
        page.keyboard.press("Escape")
        assert page.evaluate("found") is None and page.inner_text("#count") == "5,000 records"
        page.keyboard.type("no such words")
        page.keyboard.press("Enter")
        assert (
            page.inner_text("#count") == "0 of 5,000 match"
            and page.evaluate("chosen") == expected[0]
        )


def test_colours_and_legend(browser: Any, drawn: tuple[Path, dict[str, Any]]) -> None:
    colours = (
        "plot.data.filter(t => t.x.length).map(t => [t.marker.color, t.marker.symbol, t.x.length])"
    )
    with Opened(browser, drawn[0]) as page:
        seen = {}
        options = page.locator("#colour option").all_text_contents()
        assert options == ["cluster", "length in characters", "file", "kind"]
        for option in options:
            page.select_option("#colour", label=option)
            page.wait_for_timeout(300)
            seen[option] = page.evaluate(colours)
            assert sum(count for *_, count in seen[option]) == 5000
        assert len({json.dumps(value) for value in seen.values()}) == 4
        assert [count for *_, count in seen["file"]] == [4000, 1000]
        assert sorted(count for *_, count in seen["kind"]) == [500, 500, 4000]
        assert len(seen["cluster"]) == len(drawn[1]["clusters"])
        button = page.get_by_role("button", name="ranking (500)")
        button.press("Enter")
        assert button.get_attribute("aria-pressed") == "false"
        assert sorted(count for *_, count in page.evaluate(colours)) == [500, 4000]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only(
    browser: Any, drawn: tuple[Path, dict[str, Any]], scheme: str
) -> None:
    viewport = {"width": 390, "height": 844}
    with Opened(
        browser, drawn[0], viewport=viewport, color_scheme=scheme, has_touch=True, is_mobile=True
    ) as page:
        for _ in range(2):
            assert page.evaluate("document.documentElement.scrollWidth") == 390
            page.fill("#search", "opposite")
            page.press("#search", "Enter")
        below = page.evaluate(
            "panel.getBoundingClientRect().top - legend.getBoundingClientRect().bottom"
        )
        assert below >= 0 and page.locator("#panel").is_visible()
        dark = page.evaluate("getComputedStyle(document.body).color") == "rgb(255, 255, 255)"
        assert dark == (scheme == "dark")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_texts_are_never_markup(browser: Any, tmp_path: Path, dimensions: int) -> None:
    rows = [
        ask(
            f"{EVIL} {index}",
            f"{EVIL} of {index}",
            id=EVIL,
            source=EVIL * (index % 2),
            quality=EVIL,
        )
        for index in range(30)
    ]
    file = write(tmp_path / "<img src=x onerror=window.bad=3>.jsonl", rows)
    other = write(
        tmp_path / "other.jsonl",
        [{"kind": "prompt", "turns": rows[0]["turns"][:1], "follow_ups": [EVIL]}],
    )
    out = tmp_path / "map.html"
    draw([str(file), str(other)], out, MapSettings(dimensions=dimensions))
    assert out.read_text().count("</script>") == 3 and "\\u003c/script>" in out.read_text()
    with Opened(browser, out, viewport={"width": 1200, "height": 800}) as page:
        page.fill("#search", EVIL)
        page.press("#search", "Enter")
        assert (
            panel(page) == [f"{EVIL} 0", f"{EVIL} of 0"]
            and page.inner_text("#count") == "31 of 31 match"
        )
        for index in range(page.locator("#colour option").count()):
            page.select_option("#colour", index=index)
        if dimensions == 2:
            x, y, _ = page.evaluate(LONELY)
            page.mouse.move(x, y)
            page.locator(".hoverlayer text").first.wait_for()
            assert "<img" in page.locator(".hoverlayer").text_content()
        assert page.evaluate("window.bad") is None
        assert page.locator("img, #parts b, #legend b, .hoverlayer b").count() == 0


def test_three_dimensions(browser: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", list(map(to_json, demonstrations(300, seed=2))))
    draw([str(file)], tmp_path / "map.html", MapSettings(dimensions=3))
    with Opened(browser, tmp_path / "map.html") as page:
        assert page.evaluate("plot.data[1].type === (webgl ? 'scatter3d' : 'scatter')")
        assert page.evaluate("data.at.map(axis => axis.length)") == [300, 300, 300]
        page.fill("#search", "opposite")
        page.press("#search", "Enter")
        assert panel(page) == texts_at(page.inner_text("#where"))


@pytest.mark.parametrize(
    "texts",
    [["hi"], ["a b", "c d"], ["same"] * 40, ["1+1", "2+2", "?", "!"], ["x", "y", "z", "x", "y"]],
)
def test_few_equal_and_wordless_records(browser: Any, tmp_path: Path, texts: list[str]) -> None:
    file = write(tmp_path / "in.jsonl", [ask(text, text) for text in texts])
    report = draw([str(file)], tmp_path / "map.html", MapSettings())
    assert report["drawn"] == len(texts) and sum(one["size"] for one in report["clusters"]) == len(
        texts
    )
    with Opened(browser, tmp_path / "map.html") as page:
        page.get_by_role("button", name="Next").click()
        assert panel(page) == [texts[0]] * 2


def test_a_seed_decides_every_byte(tmp_path: Path) -> None:
    rows = list(map(to_json, demonstrations(400, seed=3)))
    file = write(tmp_path / "in.jsonl", rows)
    made = []
    for seed in (0, 0, 1):
        draw([str(file)], tmp_path / "map.html", MapSettings(limit=300, seed=seed))
        made.append((tmp_path / "map.html").read_bytes())
    assert made[0] == made[1] != made[2]


def test_the_sample_is_fair_ordered_and_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "in.jsonl", [ask(f"q{index}", "a") for index in range(100)])
    drawn = [0] * 100
    for seed in range(300):
        points, counts = sample([str(file)], MapSettings(limit=20, seed=seed))
        numbers = [number for number, *_ in points]
        assert numbers == sorted(set(numbers)) and len(numbers) == 20 and counts["records"] == 100
        for number in numbers:
            drawn[number] += 1
    assert min(drawn) > 30 and max(drawn) < 95  # 60 expected, standard deviation 7


def test_the_command_tells_what_became_of_the_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "ant bee cat dog elk fox gnu hen ibis jay koi lark".split()
    rows = [ask(f"question {word}", f"answer about {word}") for word in words] + [
        ask("empty", ""),
        {"kind": "x"},
    ]
    file = write(tmp_path / "in.jsonl", rows)
    out, account = tmp_path / "made" / "map.html", tmp_path / "made" / "report.json"
    arguments = [
        "--out",
        str(out),
        "--report",
        str(account),
        "--limit",
        "10",
        "--clusters",
        "2",
        "--seed",
        "5",
    ]
    assert main(["data", "map", str(file), *arguments]) == 0
    shown = capsys.readouterr().out
    assert (
        "rejected: empty text      1" in " ".join(shown.split(" "))
        and str(out) in shown.splitlines()[-1]
    )
    report = json.loads(account.read_text())
    assert (report["read"], report["records"], report["drawn"], report["left_out"]) == (
        14,
        12,
        10,
        2,
    )
    assert (
        report["rejected"] == {"empty text": 1, "unknown kind": 1} and len(report["clusters"]) == 2
    )
    assert {path.name for path in out.parent.iterdir()} == {"map.html", "report.json"}


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(
        tmp_path / "good.jsonl", [ask(f"question {index}", "answer") for index in range(3)]
    )
    bad = write(tmp_path / "bad.jsonl", [ask("empty", "")])
    out = tmp_path / "map.html"
    for arguments, message in (
        ([tmp_path / "none.jsonl"], "no such file or folder"),
        ([bad], "bad.jsonl: no row to draw of 1 read: empty text (1)"),
        ([write(tmp_path / "empty.jsonl", [])], "no row to draw of 0 read: there are none"),
        ([good, "--limit", "0"], "--limit is 0: at least 1"),
        ([good, "--clusters", "9"], "9 clusters of 1 different texts; ask for 1 at most"),
        ([good, "--embeddings", "model"], "expected MODEL@URL"),
        ([good, "--key", "NO_SUCH_KEY"], "--key is of use with --embeddings only"),
        (
            [good, "--embeddings", "m@http://x", "--key", "NO_SUCH_KEY"],
            "no such environment variable",
        ),
    ):
        assert main(["data", "map", *map(str, arguments), "--out", str(out)]) == 1
        assert message in capsys.readouterr().err
    assert not out.exists()


class Endpoint(BaseHTTPRequestHandler):
    """Vectors that depend on the text's first letter; the first request fails, and answers come in
    reverse order.
    """

    calls: list[tuple[str, int]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.calls.append((self.headers["Authorization"], len(body["input"])))
        known = body["model"] == "letters@1"
        self.send_response(503 if len(self.calls) == 1 else 200 if known else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        vectors = [[float(text[0] == letter) for letter in "abcd"] for text in body["input"]]
        rows = [
            {"object": "embedding", "index": index, "embedding": one}
            for index, one in enumerate(vectors)
        ]
        answer = {
            "object": "list",
            "data": rows[::-1],
            "model": "letters",
            "usage": {"prompt_tokens": 1, "total_tokens": 1},
        }
        self.wfile.write(
            json.dumps(answer if known else {"error": {"message": "no such model"}}).encode()
        )

    def log_message(self, *_: object) -> None:
        pass


def test_an_embedding_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        tmp_path / "in.jsonl",
        [ask(f"{'abcd'[index % 4]} {index}", f"answer {index}") for index in range(150)],
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MAP_KEY", "secret")
    url, out = f"http://127.0.0.1:{server.server_port}/v1", tmp_path / "map.html"
    try:
        report = draw([str(file)], out, MapSettings(embeddings=f"letters@1@{url}", key="MAP_KEY"))
        assert [count for _, count in Endpoint.calls] == [64, 64, 64, 22]
        assert {key for key, _ in Endpoint.calls} == {
            "Bearer secret"
        } and "secret" not in out.read_text()
        assert [one["size"] for one in report["clusters"]] == [38, 38, 37, 37] and report[
            "silhouette"
        ] == 1
        assert (
            main(["data", "map", str(file), "--out", str(out), "--embeddings", f"other@{url}"]) == 1
        )
        assert f"other@{url}: Error code: 404" in capsys.readouterr().err
        assert Endpoint.calls[-1][0] == "Bearer none"
    finally:
        server.shutdown()


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'sklearn', 'umap', 'plotly', 'openai', 'numpy', 'rayward.data.formats.registry'}"
    code = (
        "import sys, rayward.pipelines.cli; rayward.pipelines.cli._parser(); "
        f"sys.exit(str({heavy} & sys.modules.keys() or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=os.environ
    )
    assert done.stderr.strip() == ""


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not beside this checkout")
def test_real_files_of_many_formats(browser: Any, tmp_path: Path) -> None:
    files = [str(REAL / name) for name in ("nectar/train.jsonl.gz", "hh_rlhf")]
    report = draw(files, tmp_path / "map.html", MapSettings(limit=500))
    assert report["drawn"] == 500
    with Opened(browser, tmp_path / "map.html") as page:
        page.get_by_role("button", name="Next").click()
        assert panel(page)
