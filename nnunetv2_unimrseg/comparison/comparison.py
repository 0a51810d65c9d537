"""A comparison: the paired differences between several models, and how they were computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from nnunetv2_unimrseg.comparison.matching import Matched
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL


@dataclass(frozen=True)
class Comparison:
    """Several models on the same cases, each against the first.

    Attributes:
        evaluations: of each model, the baseline first.
        matched: what they have in common.
        differences: the table that `differences.paired_differences` returns.
        method: how intervals and tests were computed; JSON types only.
        notices: sentences on what was left out and what the number of cases does not allow.
    """

    evaluations: tuple[Evaluation, ...]
    matched: Matched
    differences: pd.DataFrame
    method: dict[str, Any]
    notices: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the models are called, the baseline first."""
        return self.matched.names

    @property
    def scores(self) -> pd.DataFrame:
        """The scores of all models for common cases, subsets and labels; see `Matched.scores`."""
        return self.matched.scores

    @property
    def labels(self) -> list[str]:
        """The labels, and `MEAN_LABEL` after them where there are several."""
        return [*self.matched.labels, MEAN_LABEL] if len(self.matched.labels) > 1 else list(self.matched.labels)

    @property
    def headline(self) -> str:
        """The label that stands for the whole: the only one, or the mean over all."""
        return self.labels[-1]

    def rows(self, model: str, metric: str, label: str) -> pd.DataFrame:
        """Return the differences of one model to the baseline by subset, the averages last; index `subset`."""
        table = self.differences
        chosen = (table["model_b"] == model) & (table["metric"] == metric) & (table["label"] == label)
        return table[chosen].set_index("subset")
