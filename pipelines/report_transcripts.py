"""The report's transcripts of RL by iteration: prompts, answers, rewards, and each token coloured by its KL."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.stage import read_jsonl

ROWS = 8
TOKENS = 400
LEVELS = (0.1, 0.3, 1.0, 3.0)
"""Least |log pi - log pi_ref| of a token, in nats, for each strength of its colour."""
STRENGTHS = (0.16, 0.32, 0.5, 0.72)
STYLE = """
details { margin: .4rem 0; } summary { cursor: pointer; } .said { margin: .8rem 0; overflow-wrap: anywhere; }
.tokens { white-space: pre-wrap; } .tokens i, .legend i { font-style: normal; border-radius: 2px; }
.legend i { padding: 0 .35em; }
""" + "".join(
    f".{kind}{level} {{ background: rgba({colour}, {strength}); }}\n"
    for kind, colour in (("more", "225, 50, 50"), ("less", "50, 110, 255"))
    for level, strength in enumerate(STRENGTHS, start=1)
)


def transcripts_html(folder: Path) -> str:
    """The first, the middle and the last iteration, and two between, each folded up; "" where there are none."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        return ""
    pieces = ["<h4>Transcripts</h4>"]
    for place in sorted({round(quarter * (len(files) - 1) / 4) for quarter in range(5)}):
        rows = list(read_jsonl(files[place]))
        scores = [row["score"] for row in rows if row["score"] is not None]
        mean = f", mean reward {sum(scores) / len(scores):.3f}" if scores else ""
        said = "".join(map(_said, rows[:ROWS]))
        if any("kl" in row for row in rows) and len(pieces) == 1:
            pieces.append(_legend())
        pieces.append(
            f"<details><summary>iteration {int(files[place].stem)}: {len(rows)} answers{mean}</summary>{said}</details>"
        )
    return "".join(pieces)


def level_of(kl: float) -> str:
    """A token's CSS class: more1 to more4 where the policy gives it more than the reference, less1 to less4, or ""."""
    strength = sum(abs(kl) >= least for least in LEVELS)
    return f"{'more' if kl > 0 else 'less'}{strength}" if strength else ""


def _said(row: dict[str, Any]) -> str:
    about = ["no reward" if row["score"] is None else f"reward {row['score']:.3f}"]
    about += [f"KL {math.fsum(row['kl']):.2f} nats"] if "kl" in row else []
    about += [f"{row['tokens']} tokens", *([] if row["finished"] else ["cut"])]
    text = _tokens(row["pieces"], row["kl"], row.get("advantages")) if "kl" in row else html.escape(row["answer"])
    return (
        f'<div class="said"><div class="prompt">{html.escape(row["prompt"])}</div><div class="tokens">{text}</div>'
        f"<small>{', '.join(about)}</small></div>"
    )


def _tokens(pieces: Sequence[str], kl: Sequence[float], advantages: Sequence[float] | None) -> str:
    """Each token with its figures, which a pointer shows. Raises ValueError where the lists differ in length."""
    shown = []
    for place, (piece, value) in enumerate(zip(pieces, kl, strict=True)):
        if place < TOKENS:
            more = f", advantage {advantages[place]:.2f}" if advantages else ""
            shown.append(f'<i class="{level_of(value)}" title="KL {value:.2f}{more}">{html.escape(piece)}</i>')
    left = len(pieces) - TOKENS
    return "".join(shown) + (f" <small>({left} more tokens)</small>" if left > 0 else "")


def _legend() -> str:
    """What the colours say."""
    marks = {
        kind: " ".join(f'<i class="{kind}{level}">{least:g}</i>' for level, least in enumerate(LEVELS, start=1))
        for kind in ("more", "less")
    }
    return (
        '<p class="legend">KL of a token, log &pi; - log &pi;<sub>ref</sub>, in nats. The policy gives it more than '
        f"the reference: {marks['more']}; less: {marks['less']} and beyond. A pointer on a token shows its figures.</p>"
    )
