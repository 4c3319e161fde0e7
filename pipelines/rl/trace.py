"""Who worked when in an iteration of RL: seconds by actor and task, and a Chrome trace.

All are made from the lines of `rl/NAME/spans.jsonl`, one an iteration: {"iteration": k, "begun": s,
"ended": s, "spans": [{"role", "rank", "name", "start", "end"}, ...]}, in seconds since the first
iteration began. A span may reach over the ends of its iteration (an engine that generates for the
next one); it counts with the part within, and may stand in the lines of both: in the first, if it
went on, as "open" with what was known of it. The trace is in the Chrome trace event format, which
chrome://tracing and Perfetto open.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rayward.pipelines.run.files import read_jsonl

DRIVER = "driver"
ROLES = (DRIVER, "rollout", "reward", "second", "reference", "critic", "policy")
NAMES = (
    "generate",
    "update",
    "score",
    "logprobs",
    "values",
    "send_weights",
    "receive_weights",
    "advantages",
    "monitor",
    "save",
)
"""Tasks in the order of their colours; others get colours after these."""

Line = Mapping[str, Any]
Interval = tuple[float, float]


def seconds_of(line: Line) -> dict[str, Any]:
    """Where the wall seconds of an iteration went.

    iteration_s; busy_s by (role, name): seconds in which at least one rank of the role did it;
    idle_s by role (without the driver): seconds in which no rank of it did anything; outside_s:
    seconds in which no actor did anything, that is the driver, Ray, and waiting. A role without a
    span in the iteration has no entry. Raises ValueError where something ends before it begins.
    """
    wall = line["ended"] - line["begun"]
    if wall < 0:
        raise ValueError(
            f"iteration {line['iteration']} begins at {line['begun']} s and ends at "
            f"{line['ended']} s"
        )
    tasks: dict[tuple[str, str], list[Interval]] = {}
    roles: dict[str, list[Interval]] = {}
    for span in line["spans"]:
        # Rounding of the file keeps the order; only a clock that was set back does not.
        if span["end"] < span["start"]:
            raise ValueError(f"iteration {line['iteration']}: a span ends before it begins: {span}")
        # What lies outside counts in the line of the neighbour. It may end before it starts now,
        # if no part is within; `union` leaves that out.
        within = (max(span["start"], line["begun"]), min(span["end"], line["ended"]))
        tasks.setdefault((span["role"], span["name"]), []).append(within)
        if span["role"] != DRIVER:
            roles.setdefault(span["role"], []).append(within)
    at_work = [interval for intervals in roles.values() for interval in intervals]
    return {
        "iteration_s": wall,
        "busy_s": {task: _length(union(intervals)) for task, intervals in tasks.items()},
        "idle_s": {role: wall - _length(union(intervals)) for role, intervals in roles.items()},
        "outside_s": wall - _length(union(at_work)),
    }


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same points as disjoint intervals in order; empty intervals are left out."""
    disjoint: list[Interval] = []
    for start, end in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if disjoint and start <= disjoint[-1][1]:
            disjoint[-1] = (disjoint[-1][0], max(disjoint[-1][1], end))
        else:
            disjoint.append((start, end))
    return disjoint


def _length(intervals: Iterable[Interval]) -> float:
    return sum(end - start for start, end in intervals)


def chrome_trace(lines: Iterable[Line]) -> dict[str, Any]:
    """All iterations as one trace: a process for each role, a thread for each rank, times in
    microseconds.

    Process 0 shows the iterations themselves. Of a span that stands in two lines the whole is
    drawn.
    """
    lines = list(lines)
    # A span that was open stands whole in the next line.
    spans = [
        (span["start"], span["end"], span["role"], span["rank"], span["name"], line["iteration"])
        for line in lines
        for span in line["spans"]
        if not span.get("open")
    ]
    # Roles keep their order in every trace, so two traces can be compared by eye.
    roles = ordered((span[2] for span in spans), ROLES)
    pids = {role: number for number, role in enumerate(roles, start=1)}
    # Names and order come as events of metadata, "ph": "M".
    events = []
    for name, pid in {"iterations": 0, **pids}.items():
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}})
        events.append(
            {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}}
        )
    for role, rank in sorted({span[2:4] for span in spans}):
        name_of = {"name": f"{role} {rank}"}
        events.append(
            {"ph": "M", "name": "thread_name", "pid": pids[role], "tid": rank, "args": name_of}
        )
    # Complete events, "ph": "X", have their start and duration in one.
    for line in lines:
        times = _microseconds(line["begun"], line["ended"])
        events.append(
            {
                "ph": "X",
                "name": f"iteration {line['iteration']}",
                "cat": "iteration",
                "pid": 0,
                "tid": 0,
            }
            | times
        )
    for start, end, role, rank, name, iteration in sorted(spans):
        event = {
            "ph": "X",
            "name": name,
            "cat": role,
            "pid": pids[role],
            "tid": rank,
            "args": {"iteration": iteration},
        }
        events.append(event | _microseconds(start, end))
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(folder: Path) -> Path:
    """Write trace.json from the spans.jsonl of an algorithm's folder; its path."""
    path = folder / "trace.json"
    path.write_text(
        json.dumps(chrome_trace(read_jsonl(folder / "spans.jsonl")), separators=(",", ":")), "utf-8"
    )
    return path


def _microseconds(start: float, end: float) -> dict[str, float]:
    return {"ts": round(start * 1e6, 1), "dur": round((end - start) * 1e6, 1)}


def ordered(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The different names: known ones in their order, then the others."""
    different = set(names)
    return [name for name in known if name in different] + sorted(different - set(known))
