"""What a command asked of a model, what it cost, what is missing: on the terminal and as JSON."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayward.pipelines.judging.asking.asking import Asking
from rayward.pipelines.judging.asking.budget import Request

LEAST_UNREADABLE = 10
"""Replies that may be unreadable, however few there are."""
MAX_TOLD = 5


def allowed_unreadable(options: argparse.Namespace, count: int) -> int:
    """How many of so many replies may be something else than what was asked for."""
    if options.unreadable is None:
        return max(LEAST_UNREADABLE, count // 10)
    if options.unreadable < 0:
        raise ValueError(f"--unreadable is {options.unreadable}, expected 0 or more")
    return int(options.unreadable)


def ask_all(asking: Asking, requests: Sequence[Request], allowed: int) -> None:
    """Ask for what is missing, and tell how much that is."""
    there = sum(asking.key(request) in asking.cache.places for request in requests)
    print(
        f"{len(requests)} replies of {asking.shown}, {there} of them in the cache; up to "
        f"{allowed} may be unreadable",
        flush=True,
    )
    asking.ask(requests)


def account_of(asking: Asking, requests: Sequence[Request]) -> dict[str, Any]:
    """What was asked and what it cost; "stopped" says why not all is there."""
    account = {"asked": asking.account(requests), "stopped": asking.stopped}
    why = Counter(asking.unanswered).most_common(20)
    return account | {"refusals": asking.refused[:20], "no_reply": dict(why)}


def tell_account(account: dict[str, Any], out: Path) -> int:
    """Print what was asked, what it cost and what is missing; the status: 1 where something is."""
    from rayward.pipelines.run.metrics import table

    asked = dict(account["asked"])
    this_run = asked.pop("this_run", {})
    table("", asked | {f"this run: {name}": value for name, value in this_run.items()})
    if lacking := account["lacking"]:
        print(f"{len(lacking)} turns are left out, as an answer is missing:")
        for text in lacking[:MAX_TOLD]:
            print(f"  {text}")
    print(out)
    wanted, there = asked.get("wanted", 0), asked.get("replies", 0)
    if account["stopped"]:
        print(
            f"stopped before the budget: {account['stopped']}; {there} of {wanted} replies are "
            "there. Raise --budget and run it again to go on"
        )
    elif there < wanted:
        print(
            f"{wanted - there} replies are missing; run the same command again to ask for them "
            "again"
        )
    for why, count in list(account.get("no_reply", {}).items())[:MAX_TOLD]:
        print(f"  no reply to {count}: {why}")
    for refusal in account.get("refusals", [])[:MAX_TOLD]:
        print(f"  refused: {refusal}")
    return int(there < wanted)
