"""What the page of a comparison shows: figures by comparison and category, and every verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.statistics.verdict_groups import Comparison, number_or_nan

if TYPE_CHECKING:
    from rayward.data.judging.annotations import Verdict

SHOWN_CHARACTERS = 20_000  # of each text; the page says how many more there are
SIDES = ("baseline", "tie", "model")
NONE = "none"


def page_data(
    found: Sequence[Comparison], files: Sequence[str], left_out: Mapping[str, int], seed: int
) -> dict[str, Any]:
    """All of it, as JSON."""
    about = f"made from {', '.join(map(str, files))}"
    if left_out:
        told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        about += f"; set aside: {told}"
    return {
        "comparisons": [_comparison(each, seed) for each in found],
        "rows": [
            _row(number, place, verdict)
            for number, each in enumerate(found)
            for place, verdict in enumerate(each.verdicts, start=1)
        ],
        "about": about,
    }


def _comparison(comparison: Comparison, seed: int) -> dict[str, Any]:
    of, verdicts = comparison.of, comparison.verdicts
    by_category: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        by_category.setdefault(_category(verdict.row), []).append(verdict)
    return {
        "model": of.model,
        "baseline": of.baseline,
        "judge": of.annotator,
        "rows": len(verdicts),
        "rate": _rate(verdicts, seed),
        "counts": Counter(_said(verdict.preference) for verdict in verdicts),
        "categories": [
            {"name": name, "rate": _rate(of_one, seed)}
            for name, of_one in sorted(by_category.items())
        ],
        "facts": list(_facts(verdicts, seed)),
    }


def _rate(verdicts: Sequence[Verdict], seed: int) -> dict[str, Any]:
    from rayward.algorithms.judging.win_rates import win_rate

    preferences = [number_or_nan(verdict.preference) for verdict in verdicts]
    rate = win_rate(preferences, seed)
    return {name: rate[name] for name in ("win_rate", "low", "high", "n_total")}


def _facts(verdicts: Sequence[Verdict], seed: int) -> Any:
    """(name, text) of what else is known of a comparison."""
    from rayward.algorithms.judging.agreement import longer_preferred

    said = [verdict for verdict in verdicts if verdict.preference is not None]
    sides = [SIDES.index(_said(verdict.preference)) / 2 for verdict in said]
    gaps = [_gap(verdict) for verdict in said]
    longer = longer_preferred(sides, gaps, range(len(said)), seed)
    columns = {"baseline": [each.length_1 for each in verdicts],
               "model": [each.length_2 for each in verdicts]}  # fmt: skip
    known = {name: [of for of in column if of is not None] for name, column in columns.items()}
    told = [f"{name} {sum(of) / len(of):.0f}" for name, of in known.items() if of]
    yield "mean length", f"{', '.join(told)} characters"
    if longer["n"]:
        interval = "{:.1f} % [{:.1f}, {:.1f}]".format(
            *(100 * longer[key] for key in ("mean", "low", "high"))
        )
        yield "the longer answer wins", f"{interval} of {longer['n']} that are decided"
    conflicts = [verdict.row.get("conflict") for verdict in verdicts]
    both = [one for one in conflicts if isinstance(one, bool)]
    if both:
        share = 100 * sum(both) / len(both)
        yield "the winner changes with the order", f"{share:.1f} % of {len(both)}"
    if identical := sum(verdict.row.get("identical") is True for verdict in verdicts):
        yield "identical answers, not asked about", str(identical)
    scores = [pair for verdict in verdicts if (pair := _scores(verdict.row))]
    if scores:
        baseline, model = sum(pair[0] for pair in scores), sum(pair[1] for pair in scores)
        ratio = f", {100 * model / baseline:.1f} % of the baseline's" if baseline else ""
        yield "sum of scores", f"baseline {baseline:g}, model {model:g}{ratio}"


def _row(number: int, place: int, verdict: Verdict) -> dict[str, Any]:
    """A verdict as the page's script reads it."""
    row = verdict.row
    reviews = list(_reviews(row))
    texts = [verdict.instruction, row["output_1"], row["output_2"]]
    name = str(place if row.get("question_id") is None else row["question_id"])
    if row.get("turn", 1) != 1:
        name += f".{row['turn']}"
    conflict = row.get("conflict")
    note = row.get("missing") or row.get("note")
    return {
        "c": number,
        "id": name,
        "name": name if len(name) <= 8 else str(place),
        "category": _category(row),
        "q": texts[0][:SHOWN_CHARACTERS],
        "a": texts[1][:SHOWN_CHARACTERS],
        "b": texts[2][:SHOWN_CHARACTERS],
        "cut": [max(0, len(text) - SHOWN_CHARACTERS) for text in texts],
        "lengths": [verdict.length_1 or 0, verdict.length_2 or 0],
        "gap": _gap(verdict),
        "p": verdict.preference,
        "said": _said(verdict.preference),
        "conflict": conflict if isinstance(conflict, bool) else None,
        "scores": _scores(row),
        "note": note if isinstance(note, str) else "",
        "doubt": _doubt([review["said"] for review in reviews]),
        "reviews": reviews,
    }


def _doubt(said: Sequence[str]) -> float:
    """Entropy in nats of win, tie and loss over the reviews of both orders that can be read.

    BPDE of Wang et al., arXiv:2305.17926, who hand the questions with the most of it to people.
    """
    counts = Counter(each for each in said if each != NONE)
    shares = [count / counts.total() for count in counts.values()]
    return round(-sum(share * math.log(share) for share in shares), 6) + 0.0


def _gap(verdict: Verdict) -> int:
    """Characters of the model's answer less those of the baseline's; 0 where one is not there."""
    if verdict.length_1 is None or verdict.length_2 is None:
        return 0
    return verdict.length_2 - verdict.length_1


def _said(preference: float | None) -> str:
    """ "model", "baseline", "tie" or "none". 0 is an old code of a tie."""
    if preference is None:
        return NONE
    if preference in (0, 1.5):
        return "tie"
    return "model" if preference > 1.5 else "baseline"


def _category(row: Mapping[str, Any]) -> str:
    """The question's category, or in AlpacaEval the data set that it is of."""
    value = row.get("category") or row.get("dataset")
    return value if isinstance(value, str) else ""


def _scores(row: Mapping[str, Any]) -> list[float] | None:
    """(the baseline's, the model's), where the judge gave scores."""
    value = row.get("scores")
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return [float(value[0]), float(value[1])]
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reviews(row: Mapping[str, Any]) -> Any:
    """What the judge said, review by review; AlpacaEval keeps one reply at most."""
    reviews = row.get("reviews")
    for review in reviews if isinstance(reviews, list) else ():
        if isinstance(review, dict):
            preference = review.get("preference")
            said = _said(preference if _is_number(preference) else None)
            text = review.get("text")
            yield _review(_head(review, said), text if isinstance(text, str) else "", said)
    reply = row.get("raw_completion")
    if isinstance(reply, dict):
        reply = reply.get("text") or (reply.get("message") or {}).get("content")
    if isinstance(reply, str):
        yield _review("reply", reply, _said(row.get("preference")))


def _head(review: Mapping[str, Any], said: str) -> str:
    parts = [str(review.get("order") or "review")]
    if isinstance(sample := review.get("sample"), int) and sample:
        parts.append(f"sample {sample + 1}")
    if scores := _scores(review):
        parts.append(f"baseline {scores[0]:g} : model {scores[1]:g}")
    if isinstance(review.get("verdict"), str):
        parts.append(f"said {review['verdict']}")
    parts.append({"none": "cannot be read", "tie": "a tie"}.get(said, f"{said} better"))
    return ", ".join(parts)


def _review(head: str, text: str, said: str) -> dict[str, Any]:
    cut = max(0, len(text) - SHOWN_CHARACTERS)
    return {"head": head, "text": text[:SHOWN_CHARACTERS], "cut": cut, "said": said}
