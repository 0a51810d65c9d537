"""The demo's data: a dataset with some patients set aside, and patients who lack files.

split SOURCE RAW            link the raw dataset SOURCE into the nnUNet_raw folder RAW, with every fifth training
                            patient set aside as unseen (imagesTs, labelsTs)
incomplete DATASET FOLDER   link the patients in imagesTs of DATASET into FOLDER, each without some of the modalities
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from nnunetv2_unimrseg.data.cases import find_cases
from nnunetv2_unimrseg.data.reading import case_name
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities, all_subsets
from nnunetv2_unimrseg.utils.files import read_json

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
        UserError: when `source` is no raw nnU-Net dataset of two to ten modalities, has too few patients, or the new
            folder is there already. Nothing is written then.
    """
    source = source.resolve()
    if not re.fullmatch(r"Dataset\d{3}_\w[\w.-]*", source.name):
        raise UserError(f"The folder of a raw nnU-Net dataset is called DatasetXXX_Name, found '{source.name}'.")
    target = raw / source.name
    if target.exists():
        raise UserError(f"'{target}' is already there. Remove it to set patients aside anew.")
    description = read_json(source / "dataset.json")
    all_subsets(len(Modalities.from_dataset_json(description)))
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


def missing_modalities(number: int, num_modalities: int) -> set[int]:
    """Return what the patient of this number is to lack: one to all but one of the modalities, others each time."""
    return {(number + offset) % num_modalities for offset in range(1 + number % (num_modalities - 1))}


def link_incomplete(dataset: Path, folder: Path) -> dict[str, list[str]]:
    """Fill `folder` with the patients in imagesTs, each without some of its files.

    Returns:
        The names of the modalities left out, by patient.

    Raises:
        UserError: when there are no unseen patients, or one lacks a file to begin with; `folder` is as it was.
    """
    description = read_json(dataset / "dataset.json")
    modalities = Modalities.from_dataset_json(description)
    ending = description["file_ending"]
    cases, problems = find_cases(dataset / "imagesTs", modalities, ending, None)
    links, missing = {}, {}
    for number, files in enumerate(cases):
        patient = case_name(files, ending)
        if len(files) < modalities.num_channels:
            problems.append(f"unseen patient {patient} must have every modality, found {len(files)} files.")
        missing_ones = sorted(missing_modalities(number, len(modalities)))
        missing[patient] = [modalities.names[one] for one in missing_ones]
        left_out = {channel for one in missing_ones for channel in modalities.channels[one]}
        links |= {folder / Path(file).name: file for channel, file in enumerate(files) if channel not in left_out}
    if problems:
        raise UserError("\n".join(problems))
    shutil.rmtree(folder, ignore_errors=True)
    for link, file in links.items():
        _link(Path(file), link)
    return missing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 after one message on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    split = commands.add_parser("split")
    split.add_argument("source", type=Path)
    split.add_argument("raw", type=Path)
    incomplete = commands.add_parser("incomplete")
    incomplete.add_argument("dataset", type=Path)
    incomplete.add_argument("folder", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "split":
            folder = split_dataset(args.source, args.raw)
            counts = [sum(1 for _ in (folder / name).iterdir()) for name in ("labelsTr", "labelsTs")]
            print(f"{folder}: {counts[0]} patients to train with, {counts[1]} set aside as unseen.")
        else:
            for patient, missing in link_incomplete(args.dataset, args.folder).items():
                print(f"{patient}: without {', '.join(missing)}")
    except UserError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
