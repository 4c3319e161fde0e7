"""KL to the reference at equal reward: APA against PPO and AWR where both are exact, the claim of
arXiv:2306.02231.

python benchmarks/tabular.py --seeds 17 18 19 --json tabular.json --svg docs/apa_kl.svg

The problem: answers of 4 tokens over 5, a random reference policy, and scores with a part of each
token, of each pair of neighbours and of the whole answer. The policy is a table of logits, one row
a state, the critic a table of values. Every iteration samples 64 answers, takes GAE's advantages
(lambda 0.95) and makes 4 steps of Adam on them. Reward and KL of the policy are then computed
exactly, over all 625 answers. Reward is given as the share of the way from the reference (0) to the
best answer (1).

Each method gets 64 settings: 8 of its strength, 2 of a second kind, 4 learning rates. `on the way`
is the KL where a run first reaches a reward; `usual` leaves only the learning rate free. `at the
end` goes by the means of the last quarter of the runs: the KL at a reward lies between those of two
neighbouring strengths, all else equal. The figure at a level is that of the setting with the lowest
mean KL over seeds, of those that get there with every seed; in brackets, the range over seeds of KL
/ least possible KL at that reward.

Shapes: B = answers, T = tokens of one, N = tokens of a batch, S = states, V = vocabulary.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rayward.algorithms.advantage import gae, kl_k1, shape_rewards, whiten
from rayward.algorithms.policy import apa, awr, ppo_clip, value_loss

VOCABULARY, TOKENS, BATCH, EPOCHS, VALUE_LR = 5, 4, 64, 4, 0.1
LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9)
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1)
# The strengths that the code of the APA paper uses, with whitened advantages and a clip of 0.2.
USUAL = {"APA": 0.1, "PPO": 0.05, "AWR": 0.5}
COLORS = {"APA": "C0", "PPO": "C1", "AWR": "C2"}


class Setting(NamedTuple):
    method: str
    lr: float
    # APA: lambda; PPO: coefficient of the KL in the reward; AWR: coefficient of the advantage.
    strength: float | None
    clip: float = 0.2
    whitened: bool = True


def settings() -> list[Setting]:
    """64 a method, each from the weakest strength on."""
    found = []
    for lr in LEARNING_RATES:
        for strength, whitened in itertools.product(
            (3.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1), (True, False)
        ):
            found.append(Setting("APA", lr, strength, whitened=whitened))
        for strength, clip in itertools.product(
            (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0), (0.1, 0.2)
        ):
            found.append(Setting("PPO", lr, strength, clip=clip))
        for strength, whitened in itertools.product(
            (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0), (True, False)
        ):
            found.append(Setting("AWR", lr, strength, whitened=whitened))
    return found


class Problem:
    """The scores, the reference and their exact trade-off."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.token_BT = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * TOKENS)
        state_BT, states = torch.zeros_like(self.token_BT), 1
        for t in range(1, TOKENS):
            prefix_B = self.token_BT[:, :t] @ VOCABULARY ** torch.arange(t)
            state_BT[:, t], states = states + prefix_B, states + VOCABULARY**t
        self.state_BT = state_BT
        self.ref_SV = torch.randn(states, VOCABULARY, generator=generator)
        self.ref_B = self.logprobs(self.ref_SV).sum(1)
        each_V = torch.randn(VOCABULARY, generator=generator)
        pair_VV = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        scores_B = each_V[self.token_BT].sum(1) + pair_VV[
            self.token_BT[:, :-1], self.token_BT[:, 1:]
        ].sum(1)
        scores_B = scores_B + torch.randn(len(scores_B), generator=generator)
        chances_B = self.ref_B.exp()
        mean = chances_B @ scores_B
        self.scores_B = (scores_B - mean) / (chances_B @ (scores_B - mean).square()).sqrt()

    def logprobs(self, logits_SV: Tensor) -> Tensor:
        return logits_SV.log_softmax(-1)[self.state_BT, self.token_BT]

    def measure(self, logprobs_B: Tensor) -> tuple[float, float]:
        """(reward as a share of the best, KL to the reference in nats an answer), exact."""
        chances_B = logprobs_B.exp()
        reward, kl = chances_B @ self.scores_B, chances_B @ (logprobs_B - self.ref_B)
        return float(reward / self.scores_B.max()), float(kl)

    def bound(self, level: float) -> float:
        """The least KL that any policy of this reward has: that of ref * exp(score / beta)."""
        low, high = 1e-3, 1e3
        for _ in range(100):
            beta = (low * high) ** 0.5
            share, kl = self.measure((self.ref_B + self.scores_B / beta).log_softmax(0))
            low, high = (beta, high) if share > level else (low, beta)
        return kl


def train(
    problem: Problem, setting: Setting, iterations: int, seed: int
) -> list[tuple[float, float]]:
    """(reward, KL) of the reference and after each iteration."""
    generator = torch.Generator().manual_seed(seed)
    logits_SV, values_S = (
        problem.ref_SV.clone().requires_grad_(),
        torch.zeros(len(problem.ref_SV), requires_grad=True),
    )
    groups = [{"params": [logits_SV], "lr": setting.lr}, {"params": [values_S], "lr": VALUE_LR}]
    optimizer = torch.optim.Adam(groups)
    lengths = [TOKENS] * BATCH
    path = [problem.measure(problem.ref_B)]
    ref_SV = problem.ref_SV.log_softmax(-1)
    for _ in range(iterations):
        with torch.no_grad():
            logprobs_B = problem.logprobs(logits_SV).sum(1)
            row_B = torch.multinomial(
                logprobs_B.exp(), BATCH, replacement=True, generator=generator
            )
            index_N = (problem.state_BT[row_B].flatten(), problem.token_BT[row_B].flatten())
            old_N, ref_N = logits_SV.log_softmax(-1)[index_N], ref_SV[index_N]
            kl_coef = setting.strength if setting.method == "PPO" else 0.0
            rewards_N = shape_rewards(
                problem.scores_B[row_B], kl_k1(old_N, ref_N), lengths, kl_coef
            )
            old_values_N = values_S[index_N[0]].clone()
            advantages_N, returns_N = gae(rewards_N, old_values_N, lengths)
            if setting.whitened:
                advantages_N = whiten(advantages_N)
        for _ in range(EPOCHS):
            logprobs_N = logits_SV.log_softmax(-1)[index_N]
            if setting.method == "PPO":
                loss = ppo_clip(logprobs_N, old_N, advantages_N, setting.clip)[0]
            elif setting.method == "APA":
                loss = apa(logprobs_N, ref_N, advantages_N, setting.strength)[0]
            else:
                loss = awr(logprobs_N, advantages_N, setting.strength)[0]
            loss = (
                loss + value_loss(values_S[index_N[0]], old_values_N, returns_N, clip=None)[0]
            ) / len(old_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        path.append(problem.measure(problem.logprobs(logits_SV.detach()).sum(1)))
    return path


def train_all(
    setting: Setting, iterations: int, seeds: Sequence[int]
) -> list[list[tuple[float, float]]]:
    """The path of each seed; a seed is a problem and its samples."""
    return [train(Problem(seed), setting, iterations, seed) for seed in seeds]


def kl_at(path: Sequence[tuple[float, float]], level: float) -> float | None:
    """KL where the path first reaches `level`, between two iterations in proportion; None if it
    never does.
    """
    for (before, kl_before), (after, kl_after) in itertools.pairwise(path):
        if before < level <= after:
            return kl_before + (kl_after - kl_before) * (level - before) / (after - before)
    return None


def best(
    paths: dict[Setting, list], method: str, level: float
) -> tuple[Setting, list[float]] | None:
    """The setting with the lowest mean KL at `level`, and its KL for each seed."""
    reached = {
        s: [kl_at(path, level) for path in runs] for s, runs in paths.items() if s.method == method
    }
    return min(
        ((s, kls) for s, kls in reached.items() if None not in kls),
        key=lambda item: statistics.fmean(item[1]),
        default=None,
    )


def by_strength(ends: dict[Setting, list]) -> dict[Setting, list]:
    """Paths like those of training, but over the strengths: from the reference to where the
    strongest ends.
    """
    paths: dict[Setting, list] = {}
    for setting, runs in ends.items():
        family = paths.setdefault(setting._replace(strength=None), [[(0.0, 0.0)] for _ in runs])
        for path, end in zip(family, runs, strict=True):
            path.append(end)
    return paths


def cell(found: tuple[Setting, list[float]] | None, bound: Sequence[float]) -> str:
    if found is None:
        return "not reached"
    ratios = [kl / least for kl, least in zip(found[1], bound, strict=True)]
    return f"{statistics.fmean(found[1]):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def named(setting: Setting) -> str:
    name = {"APA": "lambda", "PPO": "KL", "AWR": "coef"}[setting.method]
    strength = "" if setting.strength is None else f"{name} {setting.strength}, "
    second = (
        f"clip {setting.clip}"
        if setting.method == "PPO"
        else "whitened"
        if setting.whitened
        else "plain"
    )
    return f"{setting.method} {strength}{second}, lr {setting.lr}"


def plot(svg: Path, ways: dict[str, dict[Setting, list]], problems: list[Problem]) -> None:
    """KL against reward, mean over seeds, and below it as a multiple of the least possible, with
    the range.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "rayward"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        2, len(ways), figsize=(4.4 * len(ways), 6), sharex=True, sharey="row"
    )
    levels = [0.05 * step for step in range(4, 19)]
    bounds = {level: [problem.bound(level) for problem in problems] for level in levels}
    for (above, below), (title, paths) in zip(axes.T, ways.items(), strict=True):
        for method, color in COLORS.items():
            found = {level: lowest[1] for level in levels if (lowest := best(paths, method, level))}
            ratios = [
                [kl / least for kl, least in zip(found[x], bounds[x], strict=True)] for x in found
            ]
            above.plot(
                list(found),
                [statistics.fmean(kls) for kls in found.values()],
                color=color,
                label=method,
            )
            below.plot(list(found), [statistics.fmean(row) for row in ratios], color=color)
            low, high = [min(row) for row in ratios], [max(row) for row in ratios]
            below.fill_between(list(found), low, high, color=color, alpha=0.15, linewidth=0)
        above.plot(
            levels,
            [statistics.fmean(bounds[level]) for level in levels],
            "k--",
            linewidth=1,
            label="least possible",
        )
        above.set_title(title)
        above.legend()
        below.set(xlabel="reward (0 reference, 1 best answer)", ylim=(0.95, 3))
    axes[0][0].set_ylabel("KL to the reference, nats an answer")
    axes[1][0].set_ylabel("KL / least possible")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(svg, format="svg", metadata={"Date": None})


def main() -> None:
    """Run all settings, print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19])
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread")
    parser.add_argument("--json", type=Path, help="the figures of every setting")
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    problems = [Problem(seed) for seed in options.seeds]
    job = functools.partial(train_all, iterations=options.iterations, seeds=options.seeds)
    with ProcessPoolExecutor(options.workers) as pool:
        paths = dict(zip(settings(), pool.map(job, settings()), strict=True))
    tail = max(1, options.iterations // 4)
    ends = {
        s: [tuple(statistics.fmean(x) for x in zip(*path[-tail:], strict=True)) for path in runs]
        for s, runs in paths.items()
    }
    usual = {
        s: p
        for s, p in paths.items()
        if s.strength == USUAL[s.method] and s.whitened and s.clip == 0.2
    }
    figures: dict[str, list] = {"settings": [s._asdict() | {"end": ends[s]} for s in paths]}
    ways = {"on the way": paths, "usual, on the way": usual, "at the end": by_strength(ends)}
    for title, which in ways.items():
        print(
            f"\n| reward, {title} | least possible | "
            + " | ".join(COLORS)
            + " | settings |\n"
            + "|---" * 6
            + "|"
        )
        figures[title] = []
        for level in LEVELS:
            bound = [problem.bound(level) for problem in problems]
            found = {method: best(which, method, level) for method in COLORS}
            cells = [f"{statistics.fmean(bound):.2f}", *(cell(f, bound) for f in found.values())]
            chosen = "; ".join(named(f[0]) for f in found.values() if f)
            print(f"| {level} | " + " | ".join(cells) + f" | {chosen} |", flush=True)
            rows = {
                method: {"setting": f[0]._asdict(), "kl": f[1]} for method, f in found.items() if f
            }
            figures[title].append({"level": level, "least_possible": bound} | rows)
    print(f"\n{len(paths)} settings, seeds {options.seeds}, {time.perf_counter() - begun:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.svg:
        plot(options.svg, ways, problems)


if __name__ == "__main__":
    main()
