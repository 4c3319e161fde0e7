"""Load on a served reward model: requests per second and latency of `rayward reward-serve` at
several concurrencies.

python benchmarks/score_load.py RUN --clients 1 8 64 --seconds 30 --json FILE

RUN: a run folder whose prepare and reward stages are done (or --model: any reward model). The
conversations are those of its held-out rankings. A client sends its next request when the last one
is answered. All clients are coroutines of one process on the server's machine, so they take some of
its time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rayward.pipelines.rows.records import load_records
from rayward.pipelines.run.metrics import table
from rayward.pipelines.run.stage import versions

COLUMNS = (
    "clients",
    "requests",
    "requests/s",
    "conversations/s",
    "p50 ms",
    "p99 ms",
    "not 200",
    "conv. a batch",
)


def main() -> None:
    """Serve, load, print a table, stop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run with prepare")
    parser.add_argument("--model", type=Path, help="reward model (default RUN/reward/model)")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[1, 8, 64], help="requests at once"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each level")
    parser.add_argument("--conversations", type=int, default=1, help="conversations in a request")
    parser.add_argument(
        "--serve",
        default="",
        help="more options of reward-serve, such as '--replicas 2 --threads 1'",
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    bodies = requests_of(options.run, options.conversations)
    model = options.model or options.run / "reward" / "model"
    command = [
        sys.executable,
        "-m",
        "rayward.pipelines.cli",
        "reward-serve",
        str(model),
        *options.serve.split(),
    ]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = url_of(server)
        found = [asyncio.run(level(url, bodies, clients, options)) for clients in options.clients]
    finally:
        stop(server)
    lines = [tuple("-" if of[name] is None else of[name] for name in COLUMNS) for of in found]
    table(f"{options.conversations} conversations a request", lines, COLUMNS)
    if options.json:
        settings = {
            "conversations": options.conversations,
            "serve": options.serve,
            "seconds": options.seconds,
        }
        written = {"levels": found, "settings": settings, "versions": versions()}
        options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def requests_of(run: Path, size: int) -> list[bytes]:
    """Bodies of requests: the held-out conversations in a fixed random order, `size` of them in
    each.
    """
    chats = []
    for ranking in load_records(run / "prepare" / "heldout.jsonl"):
        turns = [{"role": turn.role, "content": turn.content} for turn in ranking.turns]
        chats += [[*turns, {"role": "assistant", "content": answer}] for answer in ranking.answers]
    random.Random(0).shuffle(chats)
    groups = [chats[start : start + size] for start in range(0, len(chats) - size + 1, size)]
    return [json.dumps({"conversations": group}).encode() for group in groups]


def url_of(server: subprocess.Popen[str]) -> str:
    """The address that the server prints, once its health check answers. SystemExit where it ends
    before.
    """
    assert server.stdout is not None
    for line in server.stdout:
        if at := re.search(r"(http://\S+)/score", line):
            httpx.get(f"{at[1]}/health", timeout=60).raise_for_status()
            return at[1]
    raise SystemExit("the server ended before it was up")


def stop(server: subprocess.Popen[str]) -> None:
    """As Ctrl-C does; killed where that takes longer than a minute."""
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(60)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
        print("the server did not stop within 60 s and was killed", file=sys.stderr)


async def level(
    url: str, bodies: list[bytes], clients: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Figures of `clients` clients; a second before them warms up."""
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as http:
        await load_for(http, bodies, clients, min(1.0, options.seconds))
        before = (await http.get("/health")).json()
        begun = time.perf_counter()
        latencies, statuses = await load_for(http, bodies, clients, options.seconds)
        seconds = time.perf_counter() - begun
        after = (await http.get("/health")).json()
    good = statuses["200"]
    p50, p99 = (
        np.percentile(latencies, [50, 99]) * 1000 if latencies else (float("nan"), float("nan"))
    )
    # Of the replica that answered: known only where it is the one.
    batches = after["batches"] - before["batches"]
    together = (
        None
        if "--replicas" in options.serve
        else (after["scored"] - before["scored"]) / max(1, batches)
    )
    print(
        f"{clients} clients: {good / seconds:.1f} requests/s, p99 {p99:.1f} ms, {dict(statuses)}",
        flush=True,
    )
    shown = (
        clients,
        sum(statuses.values()),
        good / seconds,
        good * options.conversations / seconds,
        float(p50),
        float(p99),
        sum(statuses.values()) - good,
        together,
    )
    return dict(zip(COLUMNS, shown, strict=True)) | {"seconds": seconds, "statuses": dict(statuses)}


async def load_for(
    http: httpx.AsyncClient, bodies: list[bytes], clients: int, seconds: float
) -> tuple[list[float], Counter[str]]:
    """Seconds of each request that was answered with 200, and the count of each status or error."""
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        turn = number
        while (begun := time.perf_counter()) < until:
            body, turn = bodies[turn % len(bodies)], turn + clients
            try:
                answer = await http.post(
                    "/score", content=body, headers={"content-type": "application/json"}
                )
                status = str(answer.status_code)
            except httpx.HTTPError as error:
                status = type(error).__name__
            statuses[status] += 1
            if status == "200":
                latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return latencies, statuses


if __name__ == "__main__":
    main()
