"""Reviews of two answers: Vicuna's and OpenChat's scores, and FastChat's winners of both orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayward.data.judging.judgments import Id, Scores, Winners

MAX_PRINTED = 5  # of the rows whose text says another score
SHOWN_CHARACTERS = 60


def reviews(
    found: Sequence[Scores], categories: Mapping[Id, str], names: Mapping[Id, str]
) -> list[dict[str, Any]]:
    """Sums of both sides' scores, their ratio in percent, and who wins, by file and judge.

    `names`: models by the id of their answer. A row whose scores are not those of its first line is
    listed under "other", with what stands there.
    """
    groups: dict[tuple[str, str, str], list[Scores]] = {}
    for each in found:
        first, second = (names.get(name, name) for name in (each.first, each.second))
        # Vicuna's ids of answers change with each row: without their names a file is one pair.
        if each.orders is None and not (each.first in names and each.second in names):
            first, second = "assistant 1", "assistant 2"
        groups.setdefault((each.file, first, second), []).append(each)
    return [_row(*key, of_one, categories) for key, of_one in groups.items()]


def _row(
    file: str, first: str, second: str, found: Sequence[Scores], categories: Mapping[Id, str]
) -> dict[str, Any]:
    by_category: dict[str, list[Scores]] = {}
    for each in found:
        category = each.category or categories.get(each.question, "")
        by_category.setdefault(category, []).append(each)
    single = [each for each in found if each.orders is None]
    unlike = [each for each in single if each.scores != each.parsed]
    orders = [each.orders for each in found if each.orders]
    read = [pair for pair in orders if pair[0] and pair[1]]
    conflicts = sum(_sign(one) != _sign(other) for one, other in read if one and other)
    return {
        "file": file,
        "first": first,
        "second": second,
        "judges": sorted({each.judge for each in found}),
        **_sums(found),
        "categories": {name: _sums(of_one) for name, of_one in sorted(by_category.items())},
        "both_orders": len(read),
        "conflicts": conflicts,
        "parser": {
            "equal": len(single) - len(unlike),
            "other": [_unlike(each) for each in unlike],
        },
    }


def _sums(found: Sequence[Scores]) -> dict[str, Any]:
    scores = [each.scores for each in found if each.scores]
    firsts, seconds = sum(pair[0] for pair in scores), sum(pair[1] for pair in scores)
    signs = Counter(_sign(pair) for pair in scores)
    return {
        "n": len(scores),
        "unratable": len(found) - len(scores),
        "sum_first": firsts,
        "sum_second": seconds,
        "percent": 100 * firsts / seconds if seconds else None,
        "wins": signs[1],
        "ties": signs[0],
        "losses": signs[-1],
    }


def _sign(pair: tuple[float, float]) -> int:
    """1 where the first has more, -1 where the second has, 0 where both have the same."""
    return (pair[0] > pair[1]) - (pair[0] < pair[1])


def _unlike(each: Scores) -> dict[str, Any]:
    line = each.text.partition("\n")[0]
    reason = "the first line is not two numbers"
    if each.parsed:
        reason = "the first line has other numbers"
    return {
        "question_id": each.question,
        "line": each.line,
        "scores": each.scores,
        "parsed": each.parsed,
        "first_line": line,
        "reason": reason,
    }


def tell_reviews(rows: Sequence[dict[str, Any]]) -> None:
    """Print the sums, by category where there are some, and the rows whose text says another."""
    from rayward.pipelines.run.metrics import table

    if not rows:
        return
    lines = [(f"{row['first']} : {row['second']}", *_figures(row)) for row in rows]
    columns = ("first : second", "sums", "first/second", "wins", "ties", "losses", "n", "unratable")
    table("pair scores", lines, columns)
    for row in rows:
        if len(row["categories"]) > 1:
            lines = [(name or "(none)", *_figures(of)) for name, of in row["categories"].items()]
            title = f"{row['first']} : {row['second']} by category"
            table(title, lines, ("category", *columns[1:]))
        if row["both_orders"]:
            print(f"{row['conflicts']} of {row['both_orders']} verdicts change with the order")
        parser = row["parser"]
        if total := parser["equal"] + len(parser["other"]):
            print(
                f"{row['file']}: in {parser['equal']} of {total} rows the scores are those of the "
                "text's first line"
            )
        for other in parser["other"][:MAX_PRINTED]:
            shown = other["first_line"][:SHOWN_CHARACTERS]
            print(
                f"  line {other['line']}, question {other['question_id']}, scores "
                f"{other['scores']}: {other['reason']}: {shown!r}"
            )


def _figures(of: Mapping[str, Any]) -> tuple[Any, ...]:
    percent = "-" if of["percent"] is None else f"{of['percent']:.1f} %"
    sums = f"{of['sum_first']:g} : {of['sum_second']:g}"
    return (sums, percent, of["wins"], of["ties"], of["losses"], of["n"], of["unratable"])


def winners(found: Sequence[Winners], seed: int) -> list[dict[str, Any]]:
    """FastChat's win rates of the first model: a win only where both orders agree, else a tie.

    A row one of whose orders has no verdict is "unreadable" and counts in no rate. Of several rows
    of a turn the last one counts.
    """
    from rayward.algorithms.judging.win_rates import win_rate

    groups: dict[tuple[str, str, str], dict[tuple, Winners]] = {}
    for each in found:
        key = (each.first, each.second, each.judge)
        groups.setdefault(key, {})[(each.question, each.turn)] = each
    rows = []
    for (first, second, judge), of_one in groups.items():
        read = [each.winners for each in of_one.values() if None not in each.winners]
        preferences = [_preference(pair) for pair in read]
        rate = win_rate(preferences, seed)
        rows.append(
            {
                "first": first,
                "second": second,
                "judge": judge,
                **{name: rate[name] for name in ("win_rate", "low", "high")},
                "wins": preferences.count(2),
                "ties": preferences.count(1.5),
                "losses": preferences.count(1),
                "conflicts": sum(one != other for one, other in read),
                "n": len(read),
                "unreadable": len(of_one) - len(read),
            }
        )
    return rows


def _preference(pair: tuple[str | None, str | None]) -> float:
    """2 where both orders prefer the first model, 1 where both prefer the second, else a tie."""
    if pair[0] != pair[1]:
        return 1.5
    return {"first": 2.0, "second": 1.0, "tie": 1.5}[str(pair[0])]


def tell_winners(rows: Sequence[dict[str, Any]]) -> None:
    """Print them."""
    from rayward.pipelines.run.metrics import table

    if not rows:
        return
    lines = []
    for row in rows:
        rate = "-"
        if row["win_rate"] is not None:
            rate = "{win_rate:.2f} [{low:.2f}, {high:.2f}]".format(**row)
        counts = (row[name] for name in ("wins", "ties", "losses", "conflicts", "n", "unreadable"))
        lines.append((f"{row['first']} : {row['second']}", row["judge"], rate, *counts))
    columns = ("first : second", "judge", "win rate [95 %]", "wins", "ties", "losses")
    table("winners of both orders, in %", lines, (*columns, "conflicts", "n", "unreadable"))
