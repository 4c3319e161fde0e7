"""Seconds by actor and task from hand-made spans, the Chrome trace of them, and the picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.report.timeline import timeline_png
from rayward.pipelines.rl.trace import chrome_trace, seconds_of, union, write_trace
from rayward.pipelines.run.files import write_jsonl


def span(role: str, rank: int, name: str, start: float, end: float) -> dict[str, Any]:
    return {"role": role, "rank": rank, "name": name, "start": start, "end": end}


def line(begun: float, ended: float, *spans: dict[str, Any], iteration: int = 0) -> dict[str, Any]:
    return {"iteration": iteration, "begun": begun, "ended": ended, "spans": list(spans)}


ONE = line(
    10.0,
    20.0,
    span("driver", 0, "advantages", 15.0, 15.5),
    span("rollout", 0, "generate", 10.5, 13.0),
    span("rollout", 1, "generate", 10.5, 14.0),
    span("rollout", 0, "receive_weights", 18.5, 19.0),
    span("reward", 0, "score", 12.0, 12.5),
    span("reward", 0, "score", 13.5, 14.5),
    span("policy", 0, "logprobs", 14.0, 15.0),
    span("policy", 1, "logprobs", 14.5, 15.0),
    span("policy", 0, "update", 15.5, 18.0),
    span("policy", 1, "update", 15.5, 17.0),
    span("policy", 0, "send_weights", 18.5, 19.0),
)


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([], []),
        ([(1, 2)], [(1, 2)]),
        ([(3, 4), (1, 2)], [(1, 2), (3, 4)]),
        ([(1, 2), (2, 3)], [(1, 3)]),
        ([(1, 5), (2, 3), (4, 6)], [(1, 6)]),
        ([(2, 2), (3, 1)], []),
    ],
)
def test_a_union(intervals: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    assert union(intervals) == expected


def test_seconds_count_a_moment_once_however_many_ranks_and_actors_are_at_work() -> None:
    found = seconds_of(ONE)
    assert found["iteration_s"] == 10.0
    assert found["busy_s"] == pytest.approx(
        {
            ("driver", "advantages"): 0.5,
            ("rollout", "generate"): 3.5,
            ("rollout", "receive_weights"): 0.5,
            ("reward", "score"): 1.5,
            ("policy", "logprobs"): 1.0,
            ("policy", "update"): 2.5,
            ("policy", "send_weights"): 0.5,
        }
    )
    assert found["idle_s"] == pytest.approx({"rollout": 6.0, "reward": 8.5, "policy": 6.0})
    # Nobody: 10 to 10.5, 15 to 15.5 (the driver's advantages), 18 to 18.5, 19 to 20.
    assert found["outside_s"] == pytest.approx(2.5)


def test_an_iteration_without_spans_is_outside_of_every_actor() -> None:
    assert seconds_of(line(1.0, 3.0)) == {
        "iteration_s": 2.0,
        "busy_s": {},
        "idle_s": {},
        "outside_s": 2.0,
    }
    driver = seconds_of(line(0.0, 2.0, span("driver", 0, "monitor", 0.0, 2.0)))
    assert driver["outside_s"] == 2.0 and driver["idle_s"] == {}


def test_a_span_over_the_ends_of_its_iteration_counts_with_the_part_within() -> None:
    found = seconds_of(
        line(
            10,
            20,
            span("rollout", 0, "generate", 4, 13),
            span("rollout", 0, "generate", 18, 25),
            span("policy", 0, "update", 2, 8),
        )
    )
    assert found["busy_s"] == {("rollout", "generate"): 5, ("policy", "update"): 0}
    assert found["idle_s"] == {"rollout": 5, "policy": 10} and found["outside_s"] == 5


def test_time_that_runs_backwards_is_refused() -> None:
    with pytest.raises(
        ValueError, match="iteration 0: a span ends before it begins: .*'start': 3, 'end': 2"
    ):
        seconds_of(line(0, 5, span("policy", 0, "update", 3, 2)))
    with pytest.raises(ValueError, match="iteration 7 begins at 5 s and ends at 4 s"):
        seconds_of(line(5, 4, iteration=7))


def test_the_trace_file_has_the_fields_of_the_format(tmp_path: Path) -> None:
    across = span("rollout", 0, "generate", 19.5, 23.0)
    so_far = across | {"end": 20.0, "open": True}
    first, second = ONE | {"spans": [*ONE["spans"], so_far]}, line(20.0, 24.25, across, iteration=1)
    assert (
        seconds_of(first)["busy_s"]["rollout", "generate"] == 4.0
        and seconds_of(second)["iteration_s"] == 4.25
    )
    write_jsonl(tmp_path / "spans.jsonl", [first, second])
    path = write_trace(tmp_path)
    trace = json.loads(path.read_text())
    assert path == tmp_path / "trace.json" and trace == chrome_trace([first, second])
    events = trace["traceEvents"]
    names = {
        event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"
    }
    assert names == {"iterations": 0, "driver": 1, "rollout": 2, "reward": 3, "policy": 4}
    threads = {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in events
        if event["name"] == "thread_name"
    }
    assert threads[names["policy"], 1] == "policy 1" and len(threads) == 6
    complete = [event for event in events if event["ph"] == "X"]
    assert all(
        {"name", "ph", "ts", "dur", "pid", "tid"} <= event.keys() and event["dur"] >= 0
        for event in complete
    )
    assert {event["ph"] for event in events} == {"X", "M"}
    assert len(complete) == 2 + len(ONE["spans"]) + 1, "the span of both iterations is there once"
    (update,) = (event for event in complete if event["name"] == "update" and event["tid"] == 1)
    assert (update["ts"], update["dur"], update["pid"]) == (15.5e6, 1.5e6, names["policy"])
    (both,) = (event for event in complete if event["ts"] == 19.5e6)
    assert both["dur"] == 3.5e6 and both["args"] == {"iteration": 1}
    assert [(event["ts"], event["dur"]) for event in complete if event["pid"] == 0] == [
        (10e6, 10e6),
        (20e6, 4.25e6),
    ]


def test_a_trace_of_nothing_is_a_trace() -> None:
    assert [event["args"] for event in chrome_trace([])["traceEvents"]] == [
        {"name": "iterations"},
        {"sort_index": 0},
    ]


def test_the_picture_has_the_colours_of_its_tasks() -> None:
    """Of an iteration without spans too, of unknown names, and of more ranks than it draws."""
    from matplotlib import colormaps
    from matplotlib.image import imread

    def share(png: bytes, colour: tuple[float, ...]) -> float:
        pixels = imread(io.BytesIO(png))[..., :3]
        return float((abs(pixels - colour[:3]).max(axis=-1) < 0.01).mean())

    generate, update = colormaps["tab10"].colors[:2]
    drawn = timeline_png(ONE)
    assert (
        drawn == timeline_png(ONE) and share(drawn, generate) > 0.03 and share(drawn, update) > 0.02
    )
    empty = timeline_png(line(0.0, 2.0))
    assert share(empty, generate) == share(empty, update) == 0
    many = [span("new role", rank, "new task", 0.1 * rank, 0.1 * rank + 1) for rank in range(9)]
    wide, four = (
        imread(io.BytesIO(timeline_png(line(0, 2, *many)))),
        imread(io.BytesIO(timeline_png(line(0, 2, *many[:4])))),
    )
    assert wide.shape == four.shape
