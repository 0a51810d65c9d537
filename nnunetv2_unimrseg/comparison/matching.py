"""What several evaluations have in common, and why some cannot be compared."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunetv2_unimrseg.comparison.agreement import (
    MOST_NAMED,
    disagreements,
    subset_key,
    subset_keys,
    unequal_conditions,
)
from nnunetv2_unimrseg.errors import UserError, counted, enumerated
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.modalities import Modalities, Subset


@dataclass(frozen=True)
class Matched:
    """The common part of several evaluations.

    Attributes:
        names: a different one for each evaluation.
        modalities: the first evaluation's; subsets are named and ordered as there.
        labels: the first evaluation's order.
        subsets: those that all evaluations have.
        scores: the scores of all evaluations, with a first column `model`; only the cases, subsets and labels that all
            of them have.
        notices: sentences on what was left out and what may be unfair.
    """

    names: tuple[str, ...]
    modalities: Modalities
    labels: tuple[str, ...]
    subsets: dict[str, Subset]
    scores: pd.DataFrame
    notices: tuple[str, ...]

    @property
    def cases(self) -> list[str]:
        """The cases that count for at least one subset, sorted."""
        return sorted(self.scores["case"].unique())


def match(evaluations: Sequence[Evaluation], names: Sequence[str] | None = None) -> Matched:
    """Reduce evaluations to what they have in common.

    Modalities are matched by name (case does not matter), so their order may differ.

    Args:
        evaluations: two or more; the first is the baseline.
        names: what to call them; by default the names in their settings.

    Raises:
        UserError: for fewer than two evaluations, and for names that are too few, too many or not all different; one
            error with all reasons where modalities, labels, conventions or references differ, or where no subset or
            no case is common to all.
    """
    if len(evaluations) < 2:
        raise UserError(f"Comparing needs at least two evaluations, found {len(evaluations)}. Name more folders.")
    named = dict(zip(_names(evaluations, names), evaluations, strict=True))
    problems = disagreements(named)
    if problems:
        raise _incomparable(problems)
    first = evaluations[0]
    subsets = _common_subsets(named)
    scores = _common_scores(named, subsets)
    if scores.empty:
        remedy = "Evaluate the models on the same cases with the same --subsets."
        raise _incomparable([f"No case was scored with the same subset in all of them. {remedy}"])
    return Matched(
        tuple(named), first.modalities, tuple(first.labels), subsets, scores, tuple(_notices(named, subsets, scores))
    )


def _incomparable(problems: Iterable[str]) -> UserError:
    return UserError("These evaluations cannot be compared:\n" + "\n".join(f"- {problem}" for problem in problems))


def _names(evaluations: Sequence[Evaluation], given: Sequence[str] | None) -> list[str]:
    if given is None:
        return _told_apart([str(evaluation.settings["name"]) for evaluation in evaluations], evaluations)
    if len(given) != len(evaluations):
        raise UserError(f"There are {len(evaluations)} evaluations and {len(given)} names. Give one name for each.")
    repeated = sorted({name for name in given if list(given).count(name) > 1})
    if repeated or not all(name.strip() for name in given):
        raise UserError(
            f"Names must differ and not be empty, found {', '.join(map(repr, repeated or given))}"
            f"{' more than once' if repeated else ''}."
        )
    return list(given)


def _told_apart(names: Sequence[str], evaluations: Sequence[Evaluation]) -> list[str]:
    """Add to repeated names as much of the folder as tells them apart, or a number where there is no folder."""
    folders = [evaluation.folder and Path(evaluation.folder).resolve() for evaluation in evaluations]
    twice = sorted({str(folder) for folder in folders if folder and folders.count(folder) > 1})
    if twice:
        raise UserError(f"{', '.join(twice)} is given more than once. Compare different evaluations.")
    result = []
    for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
        same = [other for other, its_name in zip(folders, names, strict=True) if its_name == name]
        known = [other for other in same if other is not None]
        if len(same) == 1:
            result.append(name)
        elif folder is None or len(known) < len(same):
            result.append(f"{name} ({number + 1})")
        else:
            result.append(f"{name} ({_shortest_end(folder, known)})")
    return result


def _shortest_end(folder: Path, others: Sequence[Path]) -> str:
    length = next(
        length
        for length in itertools.count(1)
        if sum(other.parts[-length:] == folder.parts[-length:] for other in others) == 1
    )
    return str(Path(*folder.parts[-length:]))


def _common_subsets(named: Mapping[str, Evaluation]) -> dict[str, Subset]:
    """Return the subsets that all have, as the first names and orders them."""
    first = next(iter(named.values()))
    keys = [subset_keys(evaluation).keys() for evaluation in named.values()]
    common = set.intersection(*map(set, keys))
    return {name: subset for name, subset in first.subsets.items() if subset_key(first, subset) in common}


def _common_scores(named: Mapping[str, Evaluation], subsets: dict[str, Subset]) -> pd.DataFrame:
    first = next(iter(named.values()))
    tables = []
    for name, evaluation in named.items():
        own = subset_keys(evaluation)
        common_name = {own[subset_key(first, subset)]: common for common, subset in subsets.items()}
        scores = evaluation.scores[evaluation.scores["subset"].isin(common_name)]
        scores = scores.assign(subset=scores["subset"].map(common_name))
        scores.insert(0, "model", name)
        tables.append(scores)
    stacked = pd.concat(tables, ignore_index=True)
    models = stacked.groupby(["case", "subset", "label"])["model"].transform("nunique")
    return stacked[models == len(named)].reset_index(drop=True)


def _notices(named: Mapping[str, Evaluation], subsets: Mapping[str, Subset], scores: pd.DataFrame) -> list[str]:
    notices = unequal_conditions(named)
    everywhere = set(scores["case"])
    common = {subset_key(next(iter(named.values())), subset) for subset in subsets.values()}
    for name, evaluation in named.items():
        unused = {
            "case": sorted(set(evaluation.scores["case"]) - everywhere),
            "subset": [subset for key, subset in subset_keys(evaluation).items() if key not in common],
        }
        notices += [
            f"Left out, not in all evaluations: {enumerated(found, MOST_NAMED)} of {name} "
            f"({counted(len(found), noun)})."
            for noun, found in unused.items()
            if found
        ]
    counts = scores.groupby("subset")["case"].nunique().reindex(list(subsets), fill_value=0)
    fewer = [f"{subset} ({count} of {len(everywhere)})" for subset, count in counts.items() if count < len(everywhere)]
    if fewer:
        notices.append(f"Not every case was scored by all with every subset: {enumerated(fewer, MOST_NAMED)}.")
    return notices
