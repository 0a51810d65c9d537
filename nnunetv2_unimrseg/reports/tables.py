"""Tables as in publications on missing modalities: a row a subset, with filled and empty circles, averages last.

A `Table` can be written as Markdown, as LaTeX and aligned for a terminal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd

from nnunetv2_unimrseg.errors import counted
from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.summary import by_subset, labels_with_mean
from nnunetv2_unimrseg.modalities import Modalities, Subset

AVAILABLE, MISSING = "●", "○"
NOTHING = "-"

MEAN_OF_INCOMPLETE, MEAN_OF_ALL = "mean of the {} incomplete", "mean of all {}"
DEVIATION_OF_ALL = "standard deviation over all {}"
"""Names of averages, given the number of subsets."""

METRICS = {
    "dice": (100.0, "Dice (%)"),
    "hd95_mm": (1.0, "95th percentile of the Hausdorff distance (mm)"),
    "asd_mm": (1.0, "average surface distance (mm)"),
    "absolute_volume_difference_ml": (1.0, "absolute volume difference (ml)"),
    "failure_rate": (100.0, "failed cases (%)"),
}
"""Metrics that a table can show: the factor for their unit, and their name with it."""


@dataclass(frozen=True)
class Table:
    """A table whose values are formatted.

    Attributes:
        caption: what the values are.
        modalities: heads of the circles' columns.
        columns: heads of the values' columns.
        subsets: of the modalities, one a row, fewest modalities first.
        values: for each subset, one text a column.
        averages: by name, one text a column.
        columns_head: head of all the values' columns together.
    """

    caption: str
    modalities: list[str]
    columns: list[str]
    subsets: list[Subset]
    values: list[list[str]]
    averages: dict[str, list[str]]
    columns_head: str = "labels"


def subset_table(evaluation: Evaluation, metric: str = "dice") -> Table:
    """Make the table of one metric of an evaluation: a column a label, and their mean where there are several.

    Args:
        evaluation: the evaluation.
        metric: one of `METRICS`.
    """
    values = by_subset(evaluation).pivot(index="subset", columns="label", values=metric)[labels_with_mean(evaluation)]
    factor, name = METRICS[metric]
    cases = mean_over_cases(evaluation.scores["case"].nunique())
    caption = f"{evaluation.settings['name']}: {name}, {cases}, by available modalities"
    by_members = {
        evaluation.subsets[subset]: list(row) for subset, row in zip(values.index, values.values, strict=True)
    }
    return table_with_averages(by_members, evaluation.modalities, list(values.columns), caption, factor)


def table_with_averages(
    values: Mapping[Subset, Sequence[float]],
    modalities: Modalities,
    columns: Sequence[str],
    caption: str,
    factor: float = 1.0,
) -> Table:
    """Make a table of values by subset, with one decimal, and their averages over the subsets.

    Args:
        values: for each subset, one a column; NaN where there is none.
        modalities: of the dataset.
        columns: heads of the values' columns.
        caption: what the values are.
        factor: multiplies the values; 100 for percent.

    Returns:
        Rows sorted by the number of modalities, then in channel order. Averages: mean over the incomplete subsets
        (where the complete one is there too), mean and population standard deviation over all.
    """
    subsets = sorted(values, key=lambda subset: (sum(subset), [not available for available in subset]))
    scaled = factor * pd.DataFrame([list(values[subset]) for subset in subsets], columns=list(columns), dtype=float)
    incomplete = scaled[[not all(subset) for subset in subsets]]
    averages = {}
    if len(subsets) > 1:
        if len(incomplete) < len(scaled):
            averages[MEAN_OF_INCOMPLETE.format(len(incomplete))] = incomplete.mean()
        averages[MEAN_OF_ALL.format(len(scaled))] = scaled.mean()
        averages[DEVIATION_OF_ALL.format(len(scaled))] = scaled.std(ddof=0)
    return Table(
        caption=caption,
        modalities=list(modalities),
        columns=list(columns),
        subsets=subsets,
        values=[[one_decimal(value) for value in row] for row in scaled.values],
        averages={name: [one_decimal(value) for value in row] for name, row in averages.items()},
    )


def one_decimal(value: float) -> str:
    """Return a number with one decimal; `NOTHING` for NaN."""
    return NOTHING if math.isnan(value) else f"{value:.1f}"


def mean_over_cases(number: int) -> str:
    """Return, for a caption, how many cases its values are the mean over."""
    return f"{'mean over ' if number != 1 else ''}{counted(number, 'case')}"


def describe_subset(modalities: Modalities, subset: Subset) -> str:
    """Return a subset in few words: "all modalities", "without T1", "only PET", or its names."""
    available = modalities.available(subset)
    missing = [name for name in modalities if name not in available]
    if not missing:
        return "all modalities"
    if len(available) == 1:
        return f"only {available[0]}"
    return f"without {missing[0]}" if len(missing) == 1 else modalities.describe(subset)


def write_tables(tables: Mapping[str, Table], folder: Path) -> None:
    r"""Write tables one below the other into `table.md` and `table.tex`.

    Args:
        tables: by their `\label` in LaTeX.
        folder: where to write.
    """
    markdown = [f"{markdown_escaped(table.caption)}\n\n{as_markdown(table)}\n" for table in tables.values()]
    (folder / "table.md").write_text("\n".join(markdown), encoding="utf-8")
    latex = [as_latex(table, label) + "\n" for label, table in tables.items()]
    (folder / "table.tex").write_text("\n".join(latex), encoding="utf-8")


def as_text(table: Table) -> str:
    """Return the table aligned for a terminal, without its caption."""
    widths = [len(name) for name in table.modalities]
    circles = ["  ".join(map(str.center, row, widths)) for row in _circles(table)]
    left = ["  ".join(table.modalities), *circles, *table.averages]
    right = [table.columns, *table.values, *table.averages.values()]
    left_width = max(map(len, left))
    right_widths = [max(map(len, column)) for column in zip(*right, strict=True)]
    head, *lines = [
        f"{start:<{left_width}}   " + "  ".join(map(str.rjust, cells, right_widths))
        for start, cells in zip(left, right, strict=True)
    ]
    rule = "-" * len(head)
    subsets, averages = lines[: len(circles)], lines[len(circles) :]
    return "\n".join([head, rule, *subsets, *([rule, *averages] if averages else [])])


def as_markdown(table: Table) -> str:
    """Return the table in Markdown, without its caption."""
    no_circles = [""] * (len(table.modalities) - 1)
    rows = [
        [markdown_escaped(name) for name in (*table.modalities, *table.columns)],
        [":-:"] * len(table.modalities) + ["--:"] * len(table.columns),
        *([*circles, *values] for circles, values in zip(_circles(table), table.values, strict=True)),
        *([name, *no_circles, *(f"**{text}**" for text in texts)] for name, texts in table.averages.items()),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_latex(table: Table, label: str) -> str:
    r"""Return the table as a LaTeX float; it needs the package booktabs.

    Args:
        table: the table.
        label: for `\ref`, such as "tab:dice".
    """
    num_modalities, num_columns = len(table.modalities), len(table.columns)
    first = num_modalities + 1
    heads = [latex_escaped(name) for name in (*table.modalities, *table.columns)]
    rows = [
        (sum(subset), _latex_row([*(r"$\bullet$" if available else r"$\circ$" for available in subset), *texts]))
        for subset, texts in zip(table.subsets, table.values, strict=True)
    ]
    averages = [
        _latex_row([rf"\multicolumn{{{num_modalities}}}{{l}}{{{name}}}", *texts])
        for name, texts in table.averages.items()
    ]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_escaped(table.caption)} ($\bullet$ available, $\circ$ missing).}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{'c' * num_modalities}{'r' * num_columns}}}",
        r"\toprule",
        _latex_row(
            [
                rf"\multicolumn{{{num_modalities}}}{{c}}{{modalities}}",
                rf"\multicolumn{{{num_columns}}}{{c}}{{{latex_escaped(table.columns_head)}}}",
            ]
        ),
        rf"\cmidrule(lr){{1-{num_modalities}}} \cmidrule(lr){{{first}-{num_modalities + num_columns}}}",
        _latex_row(heads),
        r"\midrule",
        ("\n" + r"\addlinespace" + "\n").join(
            "\n".join(row for _, row in group) for _, group in groupby(rows, key=lambda entry: entry[0])
        ),
        *([r"\midrule", *averages] if averages else []),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _circles(table: Table) -> list[list[str]]:
    return [[AVAILABLE if available else MISSING for available in subset] for subset in table.subsets]


def markdown_escaped(text: str) -> str:
    """Return text that Markdown shows literally; "_" inside a word needs no escape."""
    text = re.sub(r"([\\`*\[\]<>|~$&#])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)


def latex_escaped(text: str) -> str:
    """Return text that LaTeX prints literally."""
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    words |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    words |= {letter: "\\" + letter for letter in "{}$&#_%"}
    return "".join(words.get(letter, letter) for letter in text)
