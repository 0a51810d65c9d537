"""The HTML page of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pandas as pd

from nnunetv2_unimrseg.errors import counted, enumerated
from nnunetv2_unimrseg.evaluation import summary
from nnunetv2_unimrseg.evaluation.conventions import DESCRIPTIONS
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.expected_dice import FEW_CASES
from nnunetv2_unimrseg.reports.case_images import label_colours, label_values
from nnunetv2_unimrseg.reports.html import percent, render
from nnunetv2_unimrseg.reports.tables import DEVIATION_OF_ALL, MEAN_OF_ALL, MEAN_OF_INCOMPLETE, describe_subset

MOST_CASE_ROWS = 2000
"""Rows of the table of cases; where there are more, only the worst are shown."""

MOST_PAIR_ROWS = 1000
"""Rows of the table of pairs; where there are more, only the worst of each label are shown."""

Row = Mapping[str, Any]
"""A row of a table of `evaluation.summary`: values by column."""

OTHER_METRICS = ("hd95_mm", "asd_mm", "absolute_volume_difference_ml", "failure_rate")


@dataclass
class Pictures:
    """The pictures of the cases.

    Attributes:
        viewer: entries of `viewer.viewer_case` for some cases, each with `why` it was chosen.
        left_out: cases that could not be drawn, and why.
    """

    viewer: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def evaluation_page(evaluation: Evaluation, plots: Mapping[str, Path], pictures: Pictures) -> str:
    """Return the page of an evaluation.

    Args:
        evaluation: the evaluation.
        plots: the files of `heat_map`, `boxes_by_number` and `cost_of_losing`.
        pictures: of the cases.
    """
    settings = evaluation.settings
    means, changes = summary.by_subset(evaluation), summary.adding_modalities(evaluation)
    case_rows, cases_left_out = _case_rows(evaluation)
    pairs, pairs_left_out = _pair_rows(evaluation, changes)
    monotonicity = summary.monotonicity(evaluation, changes).to_dict("records")
    conventions = settings["conventions"]
    names = list(label_values(evaluation))
    return render(
        "evaluation.html.j2",
        name=settings["name"],
        model_words=_describe_model(settings),
        modalities=list(evaluation.modalities),
        labels=summary.labels_with_mean(evaluation),
        num_cases=len(settings["cases"]),
        few_cases=len(settings["cases"]) < FEW_CASES,
        cases=[entry["case"] for entry in settings["cases"]],
        **_headline(evaluation, means, changes),
        headline_pairs=monotonicity[-1],
        subset_rows=_subset_rows(evaluation, means),
        average_rows=_average_rows(evaluation, means),
        label_rows=_describe_subsets(evaluation, means),
        number_rows=_number_rows(evaluation, means),
        cost_rows=summary.cost_of_losing(evaluation, changes).to_dict("records"),
        monotonicity_rows=monotonicity,
        pair_rows=pairs,
        pairs_left_out=pairs_left_out,
        case_rows=case_rows,
        cases_left_out=cases_left_out,
        empty=conventions["empty"],
        empty_words=DESCRIPTIONS[conventions["empty"]],
        failure_dice=conventions["failure_dice"],
        missing_words=settings["model"].get("missing_modalities"),
        settings_rows=list(_settings_rows(settings)),
        failures=settings["failures"],
        plots=plots,
        viewer=pictures.viewer,
        pictures_left_out=pictures.left_out,
        colours=label_colours(names),
    )


def _describe_model(settings: Mapping[str, Any]) -> str:
    model = settings["model"]
    parts = [model[key] for key in ("dataset", "trainer", "plans", "configuration") if model.get(key)]
    folds = [str(fold) for fold in model.get("folds", [])]
    if folds:
        parts.append(f"fold{'s' if len(folds) > 1 else ''} {', '.join(folds)}")
    return " · ".join(parts)


def _headline(evaluation: Evaluation, means: pd.DataFrame, changes: pd.DataFrame) -> dict[str, Any]:
    label = summary.headline_label(evaluation)
    rows = _describe_subsets(evaluation, means[means["label"] == label])
    by_name = {row["subset"]: row for row in rows}
    averages = summary.over_subsets(evaluation, means)
    averages = averages[(averages["label"] == label) & (averages["group"] == summary.INCOMPLETE)]
    incomplete = averages.to_dict("records")[0] if len(averages) else None
    costs = summary.cost_of_losing(evaluation, changes)
    costs = costs[(costs["label"] == label) & costs["mean"].notna()]
    costliest = costs.loc[costs["mean"].astype(float).idxmax()].to_dict() if len(costs) else None
    known = [row for row in rows if not pd.isna(row["dice"])]
    worst = min(known or rows, key=lambda row: row["dice"])
    complete = by_name.get(evaluation.complete)
    return {
        "complete": complete,
        "incomplete": incomplete,
        "costliest": costliest,
        "worst": worst,
        "sentence": _sentence(evaluation, complete, incomplete, worst),
    }


def _sentence(evaluation: Evaluation, complete: Row | None, incomplete: Row | None, worst: Row) -> str:
    settings = evaluation.settings
    num_cases = evaluation.scores["case"].nunique()
    parts = []
    if complete:
        parts.append(f"{percent(complete['dice'])} % with every modality")
    if incomplete:
        parts.append(f"{percent(incomplete['dice'])} % on average over {incomplete['num_subsets']} incomplete subsets")
        parts.append(f"{percent(worst['dice'])} % with the worst subset ({worst['words']})")
    cases = counted(num_cases, "case")
    return f"On {cases} ({settings['source']}), {settings['name']} reaches a mean Dice of {', '.join(parts)}."


def _describe_subsets(evaluation: Evaluation, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows that have a `subset`, with its modalities in `available` and its description in `words`."""
    modalities = evaluation.modalities
    known = {
        name: {"words": describe_subset(modalities, subset), "available": modalities.available(subset)}
        for name, subset in evaluation.subsets.items()
    }
    return [{**row, **known[row["subset"]]} for row in cast("list[dict[str, Any]]", rows.to_dict("records"))]


def _subset_rows(evaluation: Evaluation, means: pd.DataFrame) -> list[dict[str, Any]]:
    dice = _by_label(evaluation, means, "subset", "dice")
    headline = means[means["label"] == summary.headline_label(evaluation)]
    return [{**row, "dice": dice[row["subset"]]} for row in _describe_subsets(evaluation, headline)]


def _average_rows(evaluation: Evaluation, means: pd.DataFrame) -> list[dict[str, Any]]:
    averages = summary.over_subsets(evaluation, means)
    headline = averages[averages["label"] == summary.headline_label(evaluation)].set_index("group")
    groups = [(summary.INCOMPLETE, "", MEAN_OF_INCOMPLETE), (summary.ALL, "", MEAN_OF_ALL)]
    groups += [(summary.ALL, "_sd", DEVIATION_OF_ALL)]
    rows = []
    for group, suffix, words in groups:
        counted = group in headline.index and headline.loc[group, "num_subsets"]
        if counted and (group == summary.ALL or evaluation.complete):
            others = [headline.loc[group, f"{metric}{suffix}"] for metric in OTHER_METRICS]
            others[-1] *= 100
            dice = _by_label(evaluation, averages, "group", f"dice{suffix}")[group]
            rows.append({"words": words.format(counted), "dice": dice, "others": others})
    return rows


def _number_rows(evaluation: Evaluation, means: pd.DataFrame) -> list[dict[str, Any]]:
    numbers = summary.by_number(means)
    dice = _by_label(evaluation, numbers, "num_modalities", "dice")
    deviations = _by_label(evaluation, numbers, "num_modalities", "dice_sd")
    counts = numbers.groupby("num_modalities")["num_subsets"].max()
    return [
        {
            "number": number,
            "num_subsets": counts[number],
            "dice": list(zip(dice[number], deviations[number], strict=True)),
        }
        for number in dice
    ]


def _pair_rows(evaluation: Evaluation, changes: pd.DataFrame) -> tuple[list[dict[str, Any]], int]:
    each = MOST_PAIR_ROWS // len(summary.labels_with_mean(evaluation))
    shown = changes[changes.groupby("label").cumcount() < each]
    return _describe_subsets(evaluation, shown), len(changes) - len(shown)


def _case_rows(evaluation: Evaluation) -> tuple[list[dict[str, Any]], int]:
    """Return a row for each case and subset, of too many only the worst, and how many are left out."""
    keys = ["case", "subset"]
    table = evaluation.scores.pivot(index=keys, columns="label", values="dice")[evaluation.labels]
    if len(evaluation.labels) > 1:
        table[summary.MEAN_LABEL] = table.mean(axis=1)
    hd95 = evaluation.scores.groupby(keys)["hd95_mm"].mean()
    shown = table.nsmallest(MOST_CASE_ROWS, table.columns[-1]) if len(table) > MOST_CASE_ROWS else table
    place = {name: number for number, name in enumerate(evaluation.subsets)}
    order = sorted(shown.index, key=lambda key: (key[0], place[key[1]]))
    rows = pd.DataFrame(order, columns=keys)
    words = _describe_subsets(evaluation, rows)
    values = [
        {**row, "dice": list(table.loc[key]), "hd95_mm": hd95[key]} for row, key in zip(words, order, strict=True)
    ]
    return values, len(table) - len(shown)


def _by_label(evaluation: Evaluation, table: pd.DataFrame, key: str, column: str) -> dict[Any, list[float]]:
    """Return the values of a column by `key`, one a label in the report's order."""
    wide = table.pivot(index=key, columns="label", values=column).astype(float)
    wide = wide.reindex(columns=summary.labels_with_mean(evaluation))
    return dict(zip(wide.index, wide.values.tolist(), strict=True))


def _settings_rows(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield names and values of the settings, names of nested ones joined; of many cases, only the first are named."""
    for key in ("model", "prediction", "conventions", "versions", "label_values"):
        yield from _flatten(key.replace("_", " "), settings.get(key, {}))
    yield "source", settings["source"]
    yield "cases", f"{len(settings['cases'])}: {enumerated([entry['case'] for entry in settings['cases']], 20)}"
    yield "subsets", str(len(settings["subsets"]))
    yield "reader", settings["reader"]


def _flatten(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flatten(f"{name} · {key}", entry)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "not recorded" if value is None else str(value)
