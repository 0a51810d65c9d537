"""The table of the field: a row a subset with filled and empty circles by modality, averages last.

One `Table` is written as Markdown, as LaTeX and aligned for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import pandas as pd

from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
from nnunetv2_unimrseg.evaluation.summary import by_subset, labels_with_mean
from nnunetv2_unimrseg.modalities import Modalities, Subset

AVAILABLE, MISSING = "●", "○"
NOTHING = "-"

SHOWN = {
    "dice": (100.0, "Dice (%)"),
    "hd95_mm": (1.0, "95th percentile of the Hausdorff distance (mm)"),
    "asd_mm": (1.0, "average surface distance (mm)"),
    "absolute_volume_difference_ml": (1.0, "absolute volume difference (ml)"),
    "failure_rate": (100.0, "failed cases (%)"),
}
"""Figures that a table can show: what they are multiplied by, and their name with the unit."""


@dataclass(frozen=True)
class Table:
    """A table in words.

    Attributes:
        caption: what the figures are.
        modalities: heads of the circles' columns.
        columns: heads of the figures' columns.
        subsets: of the modalities, one a row, fewest modalities first.
        values: for each subset, one text a column.
        averages: name of an average and its texts, one a column.
        figures: head of all the figures' columns together.
    """

    caption: str
    modalities: list[str]
    columns: list[str]
    subsets: list[Subset]
    values: list[list[str]]
    averages: dict[str, list[str]]
    figures: str = "labels"


def subset_table(evaluation: Evaluation, figure: str = "dice") -> Table:
    """Make the table of one figure of an evaluation: a column a label, and their mean where there are several.

    Args:
        evaluation: the evaluation.
        figure: one of `SHOWN`.
    """
    figures = by_subset(evaluation)
    values = figures.pivot(index="subset", columns="label", values=figure)[labels_with_mean(evaluation)]
    factor, name = SHOWN[figure]
    num_cases = evaluation.scores["case"].nunique()
    cases = "1 case" if num_cases == 1 else f"mean over {num_cases} cases"
    caption = f"{evaluation.settings['name']}: {name}, {cases}, by available modalities"
    by_members = {
        evaluation.subsets[subset]: list(row) for subset, row in zip(values.index, values.values, strict=True)
    }
    return table_of(by_members, evaluation.modalities, list(values.columns), caption, factor)


def table_of(
    values: Mapping[Subset, Sequence[float]],
    modalities: Modalities,
    columns: Sequence[str],
    caption: str,
    factor: float = 1.0,
) -> Table:
    """Put figures by subset into words, with one decimal, and add their averages over the subsets.

    Args:
        values: for each subset, one figure a column; NaN where there is none.
        modalities: of the dataset.
        columns: heads of the figures' columns.
        caption: what the figures are.
        factor: what they are multiplied by, 100 for percent.

    Returns:
        Rows sorted by the number of modalities, then in channel order. Averages: mean over the incomplete subsets
        (where the complete one is there too), mean and population standard deviation over all.
    """
    subsets = sorted(values, key=lambda subset: (sum(subset), [not available for available in subset]))
    figures = factor * pd.DataFrame([list(values[subset]) for subset in subsets], columns=list(columns), dtype=float)
    incomplete = figures[[not all(subset) for subset in subsets]]
    averages = {}
    if len(subsets) > 1:
        if len(incomplete) < len(figures):
            averages[f"mean of the {len(incomplete)} incomplete"] = incomplete.mean()
        averages[f"mean of all {len(figures)}"] = figures.mean()
        averages[f"standard deviation over all {len(figures)}"] = figures.std(ddof=0)
    return Table(
        caption=caption,
        modalities=list(modalities),
        columns=list(columns),
        subsets=subsets,
        values=[_texts(row) for row in figures.values],
        averages={name: _texts(row) for name, row in averages.items()},
    )


def _texts(row: Iterable[float]) -> list[str]:
    return [NOTHING if pd.isna(value) else f"{value:.1f}" for value in row]


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
    of_subsets, of_averages = lines[: len(circles)], lines[len(circles) :]
    return "\n".join([head, rule, *of_subsets, *([rule, *of_averages] if of_averages else [])])


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
                rf"\multicolumn{{{num_columns}}}{{c}}{{{latex_escaped(table.figures)}}}",
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
    """Return a name as Markdown shows it literally; "_" inside a word needs no escape."""
    text = re.sub(r"([\\`*\[\]<>|~$&#])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\_", text)


def latex_escaped(text: str) -> str:
    """Return a name as LaTeX prints it literally."""
    words = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    words |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    words |= {letter: "\\" + letter for letter in "{}$&#_%"}
    return "".join(words.get(letter, letter) for letter in text)
