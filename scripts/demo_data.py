"""The demo's data: a dataset with some patients set aside, and inputs that lack files.

split SOURCE RAW         link the raw dataset SOURCE into the nnUNet_raw folder RAW, with every fifth training patient
                         set aside as unseen (imagesTs, labelsTs)
subsets DATASET INPUT    link every patient in imagesTs of DATASET into INPUT once for each subset of the modalities,
                         each time with that subset's files alone
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.folders import read_json
from nnunetv2_unimrseg.modalities import Modalities, Subset, all_subsets

EVERY = 5
"""One patient in this many is set aside as unseen."""

FEWEST_PATIENTS = 6
"""nnU-Net splits the training patients into five parts, and one patient at least is unseen."""


def unseen_patients(names: Sequence[str]) -> list[str]:
    """Return the patients set aside: every fifth, sorted by name.

    Raises:
        UserError: when there are too few patients to train with and to set aside.
    """
    if len(names) < FEWEST_PATIENTS:
        raise UserError(
            f"The demo needs {FEWEST_PATIENTS} training patients or more (5 to train, 1 to set aside), "
            f"found {len(names)}."
        )
    return sorted(names)[EVERY - 1 :: EVERY]


def split_dataset(source: Path, raw: Path) -> Path:
    """Link `source` into `raw` with some training patients set aside, and return the new dataset's folder.

    Raises:
        UserError: when `source` is no raw nnU-Net dataset of several modalities and plain labels, has too few
            patients, or the new folder is there already. Nothing is written then.
    """
    source = source.resolve()
    if not re.fullmatch(r"Dataset\d{3}_\w[\w.-]*", source.name):
        raise UserError(f"The folder of a raw nnU-Net dataset is called DatasetXXX_Name, found '{source.name}'.")
    target = raw / source.name
    if target.exists():
        raise UserError(f"'{target}' is already there. Remove it to set patients aside anew.")
    description = read_json(source / "dataset.json")
    Modalities.from_dataset_json(description)
    plain_labels(description)
    patients = _training_files(source, description)
    unseen = set(unseen_patients(list(patients)))

    unfinished = raw / f".{source.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for name, (images, label) in patients.items():
        split = "Ts" if name in unseen else "Tr"
        for channel, image in enumerate(images):
            _link(image, unfinished / f"images{split}" / f"{name}_{channel:04d}{description['file_ending']}")
        _link(label, unfinished / f"labels{split}" / f"{name}{description['file_ending']}")
    description.pop("dataset", None)
    description["numTraining"] = len(patients) - len(unseen)
    (unfinished / "dataset.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(target)
    return target


def plain_labels(description: dict) -> dict[str, int]:
    """Return the foreground labels of a dataset by name, in order of their values.

    Raises:
        UserError: when the dataset has regions (lists of values) or an ignore label; this demo scores plain labels.
    """
    labels = description["labels"]
    unfit = [name for name, value in labels.items() if not isinstance(value, int) or name == "ignore"]
    if unfit:
        raise UserError(
            f"The demo scores plain labels only; these are regions or ignored: {', '.join(unfit)}. The trainers take "
            "them; train and predict with the commands in README.md."
        )
    return {name: value for name, value in sorted(labels.items(), key=lambda item: item[1]) if value != 0}


def _training_files(source: Path, description: dict) -> dict[str, tuple[list[Path], Path]]:
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    found = get_filenames_of_train_images_and_targets(str(source), description)
    patients = {
        name: ([Path(image).resolve() for image in files["images"]], Path(files["label"]).resolve())
        for name, files in found.items()
    }
    absent = [str(file) for images, label in patients.values() for file in (*images, label) if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} file(s) of {source} are not there, for example {absent[0]}.")
    return patients


def _link(file: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(file.resolve())


def subset_label(modalities: Modalities, subset: Sequence[bool]) -> str:
    """Return a subset's names for use in a file name, as in "FLAIR+T1ce"."""
    names = [re.sub(r"[^A-Za-z0-9.-]", "-", name) for name in modalities]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"channel{channel}" for channel in range(len(names))]
    return "+".join(name for name, available in zip(names, subset, strict=True) if available)


def subset_case(patient: str, modalities: Modalities, subset: Sequence[bool]) -> str:
    """Return the name of the case that is a patient with a subset of the modalities."""
    return f"{patient}__{subset_label(modalities, subset)}"


def patients_of(labels: Path, file_ending: str) -> list[str]:
    """List the patients that have a label file in a folder, by name."""
    return sorted(file.name[: -len(file_ending)] for file in labels.glob(f"*{file_ending}"))


def link_subsets(dataset: Path, folder: Path) -> list[Subset]:
    """Fill `folder` with one case for each patient in imagesTs and each subset, and return the subsets.

    Raises:
        UserError: when a patient lacks a file to begin with.
    """
    description = read_json(dataset / "dataset.json")
    modalities = Modalities.from_dataset_json(description)
    ending = description["file_ending"]
    subsets = all_subsets(len(modalities))
    links = {}
    for patient in patients_of(dataset / "labelsTs", ending):
        files = [dataset / "imagesTs" / f"{patient}_{channel:04d}{ending}" for channel in range(len(modalities))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise UserError(f"Unseen patient {patient} must have every modality; not there: {', '.join(absent)}.")
        for subset in subsets:
            case = subset_case(patient, modalities, subset)
            for channel, file in enumerate(files):
                if subset[channel]:
                    links[folder / f"{case}_{channel:04d}{ending}"] = file
    shutil.rmtree(folder, ignore_errors=True)
    for link, file in links.items():
        _link(file, link)
    return subsets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 after one message on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split")
    split.add_argument("source", type=Path)
    split.add_argument("raw", type=Path)
    subsets = commands.add_parser("subsets")
    subsets.add_argument("dataset", type=Path)
    subsets.add_argument("input", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "split":
            folder = split_dataset(args.source, args.raw)
            counts = [sum(1 for _ in (folder / name).iterdir()) for name in ("labelsTr", "labelsTs")]
            print(f"{folder}: {counts[0]} patients to train with, {counts[1]} set aside as unseen.")
        else:
            linked = link_subsets(args.dataset, args.input)
            print(f"{args.input}: every unseen patient with each of {len(linked)} subsets of the modalities.")
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
