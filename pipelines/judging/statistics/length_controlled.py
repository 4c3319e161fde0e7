"""Which weights and difficulties a length-controlled win rate takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.judging.statistics.verdict_groups import Comparison, number_or_nan

if TYPE_CHECKING:
    from rayward.algorithms.judging.length_control import Weights
    from rayward.data.judging.tables import Difficulties

# Names of the weights in AlpacaEval's files, in the order of those of `Weights`.
WEIGHTS = (
    "np.tanh(std_delta_len)",
    "instruction_difficulty",
    "not_gamed_baseline.astype(float)",
)


class Published:
    """Published weights of models against one baseline, and the difficulties that go with them."""

    def __init__(self, weights: Path, difficulty: Path) -> None:
        from rayward.algorithms.judging.length_control import Weights
        from rayward.data.judging.tables import by_name, difficulties

        self.difficulty = difficulties(difficulty).by_place
        if not self.difficulty:
            raise ValueError(f"{difficulty}: no difficulty in it")
        self.weights: dict[str, Weights] = {}
        for name, numbers in by_name(weights, WEIGHTS).items():
            if missing := [field for field in WEIGHTS if field not in numbers]:
                raise ValueError(f"{weights}: {name} lacks {missing[0]}")
            self.weights[name] = Weights(*(numbers[field] for field in WEIGHTS))
        # The baseline stands in the file itself, with weights that make every comparison a tie.
        zero = [name for name, of in self.weights.items() if of == Weights(0, 0, 0)]
        self.baseline = zero[0] if len(zero) == 1 else None

    def figures(self, model: str) -> dict[str, Any]:
        """The rate of a model against their baseline and its error; {} where it has no weights."""
        weights = self.weights.get(model)
        return {} if weights is None else _figures(weights, self.difficulty)

    def check(self, baselines: Sequence[str], path: Path) -> None:
        """ValueError where it is not clear which of several baselines the weights are for."""
        if self.baseline is None and len(set(baselines)) > 1:
            raise ValueError(
                f"{path}: the weights of no model, or of several, are all 0, so which of "
                f"{', '.join(sorted(set(baselines)))} is their baseline is not said; give the "
                "verdicts against one baseline"
            )

    def is_for(self, baseline: str) -> bool:
        """Whether the weights are those against it."""
        return self.baseline in (None, baseline)


class Refit:
    """Weights fitted to the verdicts that are there; without difficulties by length alone."""

    def __init__(
        self, difficulty: Path | None, instructions: Path | None, resamples: int, seed: int
    ) -> None:
        from rayward.data.judging import tables

        self.resamples, self.seed = resamples, seed
        self.path = difficulty
        self.difficulties: Difficulties | None = None
        if difficulty:
            self.difficulties = tables.difficulties(difficulty)
        if instructions and self.difficulties:
            texts, by_place = tables.instructions(instructions), self.difficulties.by_place
            if len(texts) != len(by_place):
                raise ValueError(
                    f"{instructions} has {len(texts)} instructions, {difficulty} "
                    f"{len(by_place)} difficulties: they belong together in order"
                )
            by_text = dict(zip(texts, by_place, strict=True))
            self.difficulties = tables.Difficulties(by_place, by_text)

    def figures(self, comparison: Comparison) -> dict[str, Any]:
        """The length-controlled win rate over all instructions of the comparison, its standard
        error, its interval where that was asked for, and the weights.
        """
        from rayward.algorithms.judging.length_control import Weights, refit, refit_interval

        verdicts = comparison.verdicts
        difficulty = self._of(comparison)
        zeros = [0.0] * len(verdicts)
        if comparison.of.model == comparison.of.baseline:
            # As AlpacaEval has it, whatever the judge said.
            return _figures(Weights(0, 0, 0), difficulty or zeros)
        columns = (
            comparison.preferences,
            [number_or_nan(verdict.length_1) for verdict in verdicts],
            [number_or_nan(verdict.length_2) for verdict in verdicts],
            difficulty,
        )
        try:
            weights = refit(*columns)
            figures = _figures(weights, difficulty or zeros)
            if self.resamples and weights.strength:
                interval = refit_interval(*columns, weights.strength, self.resamples, self.seed)
                figures |= {"lc_low": interval[0], "lc_high": interval[1]}
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--refit needs scikit-learn ({error}): pip install 'rayward[data]'"
            ) from None
        except ValueError as error:
            raise ValueError(f"{comparison.of.model}: {error}") from None
        return {**figures, "weights": vars(weights)}

    def _of(self, comparison: Comparison) -> list[float] | None:
        """The difficulty of each verdict's instruction: by its text, or by its place."""
        if self.difficulties is None:
            return None
        by_place, by_text = self.difficulties.by_place, self.difficulties.by_text
        verdicts = comparison.verdicts
        if verdicts[0].place is None and by_text:
            unknown = [each.instruction for each in verdicts if each.instruction not in by_text]
            if unknown:
                raise ValueError(
                    f"{comparison.of.model}: {len(unknown)} instructions have no difficulty in "
                    f"{self.path}, as {unknown[0][:60]!r}"
                )
            return [by_text[verdict.instruction] for verdict in verdicts]
        if verdicts[0].place is not None:
            # A row of lists says the place of each, even where one was set aside.
            places = [verdict.place or 0 for verdict in verdicts]
            fits = max(places) < len(by_place)
        else:
            # Rows are told apart by their order alone, so none may be missing.
            places = list(range(len(verdicts)))
            fits = len(places) == len(by_place)
        if not fits:
            raise ValueError(
                f"{comparison.of.model} has verdicts on {max(places) + 1} instructions, and "
                f"{self.path} {len(by_place)} difficulties; --instructions FILE says which belongs "
                "to which"
            )
        return [by_place[place] for place in places]


def _figures(weights: Weights, difficulty: Sequence[float]) -> dict[str, Any]:
    return {
        "length_controlled_winrate": weights.rate(difficulty),
        "lc_standard_error": weights.standard_error(difficulty),
    }
