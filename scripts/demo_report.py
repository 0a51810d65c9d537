"""Dice by subset of the modalities: a table on screen, as CSV and as Markdown, and a figure.

demo_report.py DATASET PREDICTIONS OUTPUT

DATASET is a raw nnU-Net dataset with imagesTs and labelsTs; PREDICTIONS holds a segmentation for each patient and
subset, named as `demo_data.py subsets` names the inputs. Dice is the mean over the patients in whose reference or
prediction the class occurs.
"""

from __future__ import annotations

import argparse
import csv
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from demo_data import patients_of, plain_labels, subset_case

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.folders import read_json
from nnunetv2_unimrseg.modalities import Modalities, Subset, all_subsets

AVAILABLE, MISSING = "●", "○"
ALL_CLASSES = "all classes as one"


@dataclass(frozen=True)
class Scores:
    """Dice of every subset, patient and class.

    Attributes:
        modalities: of the dataset.
        subsets: fewest modalities first, the complete one last.
        patients: names of the unseen patients.
        classes: names of the scored classes; `ALL_CLASSES` is last where there are several.
        dice: from 0 to 1, NaN where neither reference nor prediction has the class; `(subsets, patients, classes)`.
    """

    modalities: Modalities
    subsets: tuple[Subset, ...]
    patients: tuple[str, ...]
    classes: tuple[str, ...]
    dice: np.ndarray

    @property
    def by_subset(self) -> np.ndarray:
        """Mean over the patients, `(subsets, classes + 1)`: the last column is the mean over the single classes."""
        means = mean_of_known(self.dice, axis=1)
        single = means[:, :-1] if self.classes[-1] == ALL_CLASSES else means
        return np.concatenate([means, mean_of_known(single, axis=1)[:, None]], axis=1)


def dice(reference: np.ndarray, prediction: np.ndarray) -> float:
    """Return 2 |A ∩ B| / (|A| + |B|) of two masks of one shape; NaN when both are empty."""
    total = np.count_nonzero(reference) + np.count_nonzero(prediction)
    return 2 * np.count_nonzero(reference & prediction) / total if total else float("nan")


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Return the mean over an axis of what is not NaN; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def class_dice(reference: np.ndarray, prediction: np.ndarray, values: Sequence[int]) -> list[float]:
    """Return the Dice of each label value and, where there are several, of all of them as one."""
    scores = [dice(reference == value, prediction == value) for value in values]
    if len(values) > 1:
        scores.append(dice(np.isin(reference, values), np.isin(prediction, values)))
    return scores


def read_array(path: Path) -> np.ndarray:
    """Read an image file, `(Z, Y, X)`."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def score(dataset: Path, predictions: Path) -> Scores:
    """Compare every prediction with its patient's reference.

    Raises:
        UserError: when there are no unseen patients, or predictions are not there (lists some).
    """
    description = read_json(dataset / "dataset.json")
    modalities = Modalities.from_dataset_json(description)
    labels = plain_labels(description)
    ending = description["file_ending"]
    subsets = all_subsets(len(modalities))
    patients = patients_of(dataset / "labelsTs", ending)
    if not patients:
        raise UserError(f"There are no unseen patients in {dataset / 'labelsTs'}.")
    files = [
        [predictions / (subset_case(patient, modalities, subset) + ending) for patient in patients]
        for subset in subsets
    ]
    absent = [file.name for row in files for file in row if not file.is_file()]
    if absent:
        raise UserError(
            f"{len(absent)} of {len(subsets) * len(patients)} predictions are not in {predictions}, for example "
            f"{', '.join(absent[:3])}. Run nnUNetv2_predict again."
        )
    references = [read_array(dataset / "labelsTs" / f"{patient}{ending}") for patient in patients]
    values = list(labels.values())
    scores = [
        [class_dice(reference, read_array(file), values) for reference, file in zip(references, row, strict=True)]
        for row in files
    ]
    classes = (*labels, ALL_CLASSES) if len(labels) > 1 else tuple(labels)
    return Scores(modalities, tuple(subsets), tuple(patients), classes, np.array(scores))


@dataclass(frozen=True)
class Table:
    """The table in words: Dice in percent.

    Attributes:
        modalities: heads of the circles' columns.
        columns: heads of the Dice columns.
        circles: for each subset, one circle a modality.
        values: for each subset, one text a Dice column.
        averages: name of an average and its texts, one a Dice column.
    """

    modalities: list[str]
    columns: list[str]
    circles: list[list[str]]
    values: list[list[str]]
    averages: dict[str, list[str]]


def make_table(scores: Scores) -> Table:
    """Put Dice into words: a row a subset, then the averages over the incomplete and over all subsets."""
    several = len(scores.classes) > 1
    values = scores.by_subset if several else scores.by_subset[:, :1]
    averages = {
        f"mean of the {len(values) - 1} incomplete": mean_of_known(values[:-1], axis=0),
        f"mean of all {len(values)}": mean_of_known(values, axis=0),
    }
    return Table(
        modalities=list(scores.modalities),
        columns=[*scores.classes, "mean"] if several else list(scores.classes),
        circles=[[AVAILABLE if available else MISSING for available in subset] for subset in scores.subsets],
        values=[list(map(percent, row)) for row in values],
        averages={name: list(map(percent, row)) for name, row in averages.items()},
    )


def percent(value: float) -> str:
    """Return a Dice value in percent with one decimal, or "-" where there is none."""
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def as_text(table: Table) -> str:
    """Return the table aligned for a terminal."""
    circles = ["  ".join(map(str.center, row, map(len, table.modalities))) for row in table.circles]
    left = ["  ".join(table.modalities), *circles, *table.averages]
    right = [table.columns, *table.values, *table.averages.values()]
    left_width = max(map(len, left))
    widths = [max(map(len, column)) for column in zip(*right, strict=True)]
    lines = [
        f"{start:<{left_width}}   " + "  ".join(map(str.rjust, cells, widths))
        for start, cells in zip(left, right, strict=True)
    ]
    rule = "-" * len(lines[0])
    last_subset = 1 + len(circles)
    return "\n".join([lines[0], rule, *lines[1:last_subset], rule, *lines[last_subset:]])


def as_markdown(table: Table) -> str:
    """Return the table in Markdown."""
    rows = [
        [*table.modalities, *table.columns],
        [":-:"] * len(table.modalities) + ["--:"] * len(table.columns),
        *([*circles, *values] for circles, values in zip(table.circles, table.values, strict=True)),
        *(
            [name, *[""] * (len(table.modalities) - 1), *(f"**{value}**" for value in values)]
            for name, values in table.averages.items()
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def write_csv(path: Path, scores: Scores) -> None:
    """Write every single Dice value, from 0 to 1: a row a subset, patient and class."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["modalities", "num_modalities", "patient", "class", "dice"])
        for index, value in np.ndenumerate(scores.dice):
            subset = scores.subsets[index[0]]
            names = scores.modalities.describe(subset)
            known = "" if np.isnan(value) else f"{value:.4f}"
            writer.writerow([names, sum(subset), scores.patients[index[1]], scores.classes[index[2]], known])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 after one message on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("output", type=Path)
    args = parser.parse_args(argv)
    try:
        scores = score(args.dataset, args.predictions)
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)
    table = make_table(scores)
    title = f"Dice (%) on {len(scores.patients)} unseen patients, by the modalities whose files are there"
    print(f"\n{title}\n\n{as_text(table)}\n")
    (args.output / "dice_by_subset.md").write_text(f"{title}\n\n{as_markdown(table)}\n", encoding="utf-8")
    write_csv(args.output / "dice_by_subset.csv", scores)

    from demo_figure import write_figure

    figure = args.output / "demo.png"
    write_figure(figure, args.dataset, args.predictions, scores)
    print(f"Table:  {args.output / 'dice_by_subset.md'} and .csv\nFigure: {figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
