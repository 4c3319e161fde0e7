"""Pages a second of `rayward data clean` on generated ShareGPT pages, with 1 CPU and with 2,
start-up apart.

python benchmarks/clean_pages.py --pages 10000 --cpus 1 2 --repeats 3

Every run has to account for all pages and to write the same bytes; both are checked.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who "
    "will no more if out so said what up its about into than them can only other new some could "
    "time these two may then do first any my now such like our over man me even most made after "
    "also did many before must through back years where much your way well down should because "
    "each just those people how too little state good very make world still own see men work "
    "long get here between both life being under never day same another know while last might us "
    "great old year off come since against go"
).split()
COPY_BUTTON = (
    '<button class="flex ml-auto gap-2"><svg stroke="currentColor" viewBox="0 0 24 '
    '24"></svg>Copy code</button>'
)


def page(
    items: Sequence[dict[str, Any]] | None, id: str = "a1B2c3D", model: str | None = "Model: GPT-4"
) -> str:
    """A saved page: the conversation drawn as HTML, and the same messages in __NEXT_DATA__. No
    `items`: no content.
    """
    drawn = "".join(f'<div class="py-3">{item.get("value", "")}</div>' for item in items or ())
    properties: dict[str, Any] = {"id": id, "views": 7, "__N_SSP": True}
    if items is not None:
        properties["content"] = {
            "title": "A chat",
            "avatarUrl": "data:image/png;base64,AAAA",
            "items": list(items),
        }
        if model is not None:
            properties["content"]["model"] = model
    data = {
        "props": {"pageProps": properties},
        "page": "/c/[id]",
        "query": {"id": id},
        "buildId": "x",
    }
    script = (
        json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    )
    return (
        '<!DOCTYPE html><html><head><meta charSet="utf-8"/><title>ShareGPT</title>'
        f'<script defer="" src="/m.js"></script></head><body><div id="__next">{drawn}</div>'
        f'<script id="__NEXT_DATA__" type="application/json">{script}</script></body></html>'
    )


def code(label: str, text: str) -> str:
    """A code block as the site shows it: its language, its button, and every word in a span."""
    spans = "".join(f'<span class="hljs-w">{html.escape(part)}</span> ' for part in text.split(" "))
    return (
        '<pre><div class="bg-black mb-4 rounded-md"><div class="flex items-center">'
        f'<span class="">{label}</span>{COPY_BUTTON}</div>'
        f'<div class="p-4 overflow-y-auto"><code class="hljs language-{label}">{spans[:-1]}\n'
        "</code></div></div></pre>"
    )


def generated(number: int, seed: int = 0) -> str:
    """A page of 1 to 8 exchanges with paragraphs, lists, tables and code; every 20th repeats the
    one before it.
    """
    rng = random.Random(f"{seed}/{number - 1 if number % 20 == 19 else number}")

    def sentence(least: int = 6, most: int = 25) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(least, most))).capitalize() + "."

    def paragraph() -> str:
        return " ".join(sentence() for _ in range(rng.randint(2, 6)))

    def block() -> str:
        kind = rng.choice("pppplct")
        if kind == "p":
            return (
                f"<p>{paragraph()} <strong>{sentence(1, 3)}</strong> "
                f"<code>{rng.choice(WORDS)}_x</code></p>"
            )
        if kind == "l":
            inner = "".join(f"<li>{sentence()}</li>" for _ in range(3))
            return (
                f"<ol>\n<li><p>{sentence()}</p>\n<ul>{inner}</ul>\n</li>\n"
                f"<li>{sentence()}</li>\n</ol>"
            )
        if kind == "t":
            row = "".join(f"<td>{word}</td>" for word in rng.choices(WORDS, k=3))
            return (
                "<table><thead><tr><th>A</th><th>B</th><th>C</th></tr></thead>"
                f"<tbody><tr>{row}</tr></tbody></table>"
            )
        lines = (
            f"{rng.choice(WORDS)} = f({rng.choice(WORDS)}) + {rng.randint(0, 99)}"
            for _ in range(12)
        )
        return code("python", "\n".join(lines))

    items = []
    for _ in range(rng.randint(1, 8)):
        answer = "".join(block() + "\n" for _ in range(rng.randint(2, 9)))
        items.append({"from": "human", "value": f"{sentence()}\n\n{sentence()}"})
        items.append(
            {
                "from": "gpt",
                "value": f'<div class="markdown prose w-full break-words">{answer}</div>',
            }
        )
    return page(
        items, id=f"page{number}", model=rng.choice(("Model: GPT-4", "Model: Default (GPT-3.5)"))
    )


def main() -> None:
    """Generate, clean, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--cpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--near-duplicates", type=float, help="also take out near duplicates, as rayward data clean"
    )
    parser.add_argument("--language", help="also keep one language, as rayward data clean")
    options = parser.parse_args()

    from rayward.cluster.connect import connect
    from rayward.configs.sections.machines import Cluster
    from rayward.data.cleaning.sieve import SieveRules
    from rayward.pipelines.data_tools.clean import clean

    rules = SieveRules(near_duplicates=options.near_duplicates, language=options.language)
    with tempfile.TemporaryDirectory() as name:
        folder, warm, out = Path(name, "pages"), Path(name, "warm"), Path(name, "out.jsonl")
        size_bytes = 0
        for number in range(options.pages):
            target = folder / f"{number % 100:02d}" / f"{number:06d}.html"
            target.parent.mkdir(parents=True, exist_ok=True)
            size_bytes += target.write_bytes(generated(number).encode())
        warm.mkdir()
        for number in range(16 * max(options.cpus)):
            (warm / f"{number}.html").write_text(generated(number), encoding="utf-8")
        begun = time.perf_counter()
        connect(Cluster())
        started_s = time.perf_counter() - begun
        begun = time.perf_counter()
        clean(warm, out, rules, max(options.cpus))
        warm_s = time.perf_counter() - begun
        print(f"{options.pages} pages of {size_bytes / options.pages / 1e3:.1f} kB; {rules}")
        print(
            f"start-up apart: Ray {started_s:.1f} s, first run with {16 * max(options.cpus)} "
            f"pages {warm_s:.1f} s\n"
        )
        print("| CPUs | pages/s, median | lowest | highest | MB/s | read | written | rejected |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        digests = set()
        for cpus in options.cpus:
            rates = []
            for _ in range(options.repeats):
                begun = time.perf_counter()
                report = clean(folder, out, rules, cpus)
                rates.append(options.pages / (time.perf_counter() - begun))
                digests.add(hashlib.sha256(out.read_bytes()).hexdigest())
                if report["read"] != options.pages:
                    raise SystemExit(f"{options.pages} pages made, {report['read']} read")
            rate = statistics.median(rates)
            rate_bytes = rate * size_bytes / options.pages
            shown = (
                f"{cpus} | {rate:.0f} | {min(rates):.0f} | {max(rates):.0f} | "
                f"{rate_bytes / 1e6:.1f}"
            )
            print(
                f"| {shown} | {report['read']} | {report['written']} | {report['rejected']} |",
                flush=True,
            )
        if len(digests) != 1:
            raise SystemExit("the output differs between runs")


if __name__ == "__main__":
    main()
