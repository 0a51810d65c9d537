"""Why evaluations cannot be compared: modalities, labels, conventions or references that differ, nothing in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.modalities import Subset

REFERENCE_TOLERANCE_ML = 1e-6
"""Volumes of one label of one case that differ by less are of the same reference."""

MOST_NAMED = 5
"""Cases or subsets that a message names; of others it tells the number."""


def disagreements(named: Mapping[str, Evaluation]) -> list[str]:
    """Return every reason why evaluations (by name) cannot be compared, each with its remedy; none where they can."""
    return [
        *_different_modalities(named),
        *_different_labels(named),
        *_different_conventions(named),
        *_different_references(named),
        *_nothing_in_common(named),
    ]


def unequal_conditions(named: Mapping[str, Evaluation]) -> list[str]:
    """Tell what may make a comparison unfair though it can be made: other cases at training, another way to predict."""
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
    """Return the names of an evaluation's subsets by what tells subsets of different evaluations apart."""
    return {subset_key(evaluation, subset): name for name, subset in evaluation.subsets.items()}


def subset_key(evaluation: Evaluation, subset: Subset) -> frozenset[str]:
    """Return the case-folded names of the modalities in a subset."""
    chosen = zip(evaluation.modalities, subset, strict=True)
    return frozenset(name.casefold() for name, available in chosen if available)


def listed(found: Iterable[str]) -> str:
    """Name the first few, and count the rest."""
    texts = list(found)
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return ", ".join(texts[:MOST_NAMED]) + more


def _held(named: Mapping[str, Evaluation], of: Callable[[Evaluation], Iterable[str]]) -> str:
    return "; ".join(f"{name}: {listed(of(evaluation))}" for name, evaluation in named.items())


def _pairs(values: Mapping[str, object]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _nothing_in_common(named: Mapping[str, Evaluation]) -> list[str]:
    problems = []
    if not set.intersection(*(set(evaluation.scores["case"]) for evaluation in named.values())):
        held = _held(named, lambda evaluation: sorted(set(evaluation.scores["case"])))
        problems.append(f"They have no case in common ({held}). Evaluate the models on the same cases.")
    if not set.intersection(*(set(subset_keys(evaluation)) for evaluation in named.values())):
        held = _held(named, lambda evaluation: evaluation.subsets)
        problems.append(f"They have no subset of the modalities in common ({held}). Evaluate with the same --subsets.")
    return problems


def _different_modalities(named: Mapping[str, Evaluation]) -> list[str]:
    sets = {frozenset(name.casefold() for name in evaluation.modalities) for evaluation in named.values()}
    if len(sets) == 1:
        return []
    held = _held(named, lambda evaluation: evaluation.modalities)
    return [f"Their modalities differ ({held}). Compare models of the same modalities, named alike."]


def _different_labels(named: Mapping[str, Evaluation]) -> list[str]:
    if len({frozenset(evaluation.labels) for evaluation in named.values()}) == 1:
        return []
    held = _held(named, lambda evaluation: evaluation.labels)
    return [f"Their labels differ ({held}). Compare models of the same labels or regions, named alike."]


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
    """Tell cases of the same name whose reference volumes differ, from those of the first evaluation."""
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
    cases = list(dict.fromkeys(different.get_level_values("case")))
    return [
        f"Labels differ for case {listed(cases)}: for example, the reference of '{label}' in {case} measures {held}. "
        "Cases of the same name must have the same labels; evaluate all models on one and the same set of labels."
    ]
