"""The report's transcripts of RL by iteration: prompts, answers, rewards, and each token coloured
by its KL.
"""

from __future__ import annotations

from pathlib import Path

from rayward.pipelines.report.page import render
from rayward.pipelines.run.files import read_jsonl

LEVELS = (0.1, 0.3, 1.0, 3.0)
"""Least |log pi - log pi_ref| of a token, in nats, for each strength of its colour."""


def transcripts_html(folder: Path) -> str:
    """The first, the middle and the last iteration, and two between, each folded up; "" where there
    are none.

    Raises ValueError where an answer's lists of tokens differ in length.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        return ""
    places = sorted({round(quarter * (len(files) - 1) / 4) for quarter in range(5)})
    return render(
        "transcripts.html",
        iterations={int(files[place].stem): list(read_jsonl(files[place])) for place in places},
        level_of=level_of,
        levels=LEVELS,
    )


def level_of(kl: float) -> str:
    """A token's CSS class: more1 to more4 where the policy gives it more than the reference, less1
    to less4, or "".
    """
    strength = sum(abs(kl) >= least for least in LEVELS)
    return f"{'more' if kl > 0 else 'less'}{strength}" if strength else ""
