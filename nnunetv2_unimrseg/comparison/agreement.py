"""Reasons why evaluations cannot be compared, and what may make a comparison unfair."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from nnunetv2_unimrseg.errors import enumerated
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.modalities import Subset

REFERENCE_TOLERANCE_ML = 1e-6
"""Reference volumes of one label of one case that differ by less count as equal."""

MOST_NAMED = 5
"""The number of cases or subsets that a message names; it counts the others."""


def disagreements(named: Mapping[str, Evaluation]) -> list[str]:
    """Return every reason why evaluations (by name) cannot be compared, each with its remedy; none where they can."""
    modalities = {name: list(evaluation.modalities) for name, evaluation in named.items()}
    labels = {name: evaluation.labels for name, evaluation in named.items()}
    cases = {name: sorted(set(evaluation.scores["case"])) for name, evaluation in named.items()}
    subsets = {name: list(evaluation.subsets) for name, evaluation in named.items()}
    keys = [subset_keys(evaluation) for evaluation in named.values()]
    same_modalities = "Compare models of the same modalities, named alike."
    return [
        *_if_different("modalities", modalities, same_modalities, fold_case=True),
        *_if_different("labels", labels, "Compare models of the same labels or regions, named alike."),
        *_different_conventions(named),
        *_different_references(named),
        *_if_disjoint("case", cases.values(), cases, "Evaluate the models on the same cases."),
        *_if_disjoint("subset of the modalities", keys, subsets, "Evaluate with the same --subsets."),
    ]


def unequal_conditions(named: Mapping[str, Evaluation]) -> list[str]:
    """Return what may make a comparison unfair: models evaluated on other kinds of cases, or with other settings."""
    notices = []
    sources = {name: evaluation.settings["source"] for name, evaluation in named.items()}
    if len(set(sources.values())) > 1:
        notices.append(
            f"The models were evaluated on cases of different kinds ({_pairs(sources)}). Make sure that none was "
            "trained with the cases compared."
        )
    for key in ("mirroring", "step_size"):
        values = {name: evaluation.settings["prediction"].get(key) for name, evaluation in named.items()}
        if len(set(values.values())) > 1:
            notices.append(f"The models predicted with different settings: {key} ({_pairs(values)}).")
    return notices


def subset_keys(evaluation: Evaluation) -> dict[frozenset[str], str]:
    """Return the names of an evaluation's subsets by `subset_key`, which is the same in every evaluation."""
    return {subset_key(evaluation, subset): name for name, subset in evaluation.subsets.items()}


def subset_key(evaluation: Evaluation, subset: Subset) -> frozenset[str]:
    """Return the case-folded names of the modalities in a subset."""
    chosen = zip(evaluation.modalities, subset, strict=True)
    return frozenset(name.casefold() for name, available in chosen if available)


def _pairs(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _if_different(what: str, names: Mapping[str, Sequence[str]], remedy: str, *, fold_case: bool = False) -> list[str]:
    """Return a problem where the evaluations' names of modalities or labels are not the same set."""
    sets = {frozenset(name.casefold() if fold_case else name for name in own) for own in names.values()}
    return [] if len(sets) == 1 else [f"Their {what} differ ({_first_of_each(names)}). {remedy}"]


def _if_disjoint(
    what: str, keys: Iterable[Iterable[object]], names: Mapping[str, Sequence[str]], remedy: str
) -> list[str]:
    """Return a problem where the evaluations share no case or subset."""
    common = set.intersection(*map(set, keys))
    return [] if common else [f"They have no {what} in common ({_first_of_each(names)}). {remedy}"]


def _first_of_each(names: Mapping[str, Sequence[str]]) -> str:
    return _pairs({name: enumerated(own, MOST_NAMED) for name, own in names.items()})


def _different_conventions(named: Mapping[str, Evaluation]) -> list[str]:
    conventions = {name: evaluation.settings["conventions"] for name, evaluation in named.items()}
    problems = []
    for key in dict.fromkeys(key for found in conventions.values() for key in found):
        values = {name: found.get(key) for name, found in conventions.items()}
        if len(set(map(str, values.values()))) > 1:
            remedy = _remedy(key, values)
            problems.append(f"They were made under different conventions: {key} ({_pairs(values)}). {remedy}")
    return problems


def _remedy(key: str, values: Mapping[str, object]) -> str:
    if key != "empty":
        return "Evaluate all of them with the same version of this package."
    wanted = next(iter(values.values()))
    again = ", ".join(name for name, value in values.items() if value != wanted)
    return (
        f"Run `unimrseg evaluate` again for {again}, into the same folder and with --empty {wanted}: the raw scores "
        "are kept, so nothing is predicted again."
    )


def _different_references(named: Mapping[str, Evaluation]) -> list[str]:
    """Return a problem where a case of the same name has different references, told by their volumes."""
    volumes = pd.DataFrame(
        {
            name: evaluation.scores.groupby(["case", "label"])["reference_ml"].first()
            for name, evaluation in named.items()
        }
    )
    spread = volumes.max(axis=1) - volumes.min(axis=1)
    different = spread[spread > REFERENCE_TOLERANCE_ML].index
    if different.empty:
        return []
    case, label = different[0]
    held = "; ".join(f"{name}: {volume:.6g} ml" for name, volume in volumes.loc[(case, label)].dropna().items())
    cases = enumerated(list(dict.fromkeys(different.get_level_values("case"))), MOST_NAMED)
    return [
        f"Labels differ for case {cases}: for example, the reference of '{label}' in {case} measures {held}. "
        "Cases of the same name must have the same labels; evaluate all models on one and the same set of labels."
    ]
