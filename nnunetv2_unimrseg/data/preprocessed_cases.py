"""The preprocessed cases of a dataset, checked once before anything is trained with them.

`unimrseg plan` checks the raw data, but stock nnU-Net may have planned and preprocessed a dataset without that check.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset

from nnunetv2_unimrseg.data.case_table import CASE_TABLE_NAME, TrainingCase, read_case_table
from nnunetv2_unimrseg.data.label_values import known_labels, unknown_values
from nnunetv2_unimrseg.data.normalised import value_problem
from nnunetv2_unimrseg.data.training_cases import MOST_NAMED_PROBLEMS
from nnunetv2_unimrseg.errors import UserError, counted, in_one_line, listed
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.utils.files import read_json, write_json
from nnunetv2_unimrseg.utils.threads import map_in_threads

NOTE_NAME = "unimrseg_checked_{folder}.json"
"""The file that says which preprocessed cases have passed. It lies beside their folder: inside, nnU-Net expects
nothing but cases."""

FORMAT = 2
OUTSIDE = -1
"""What nnU-Net's preprocessing writes into labels outside the nonzero mask."""


def check_preprocessed_cases(
    folder: Path,
    dataset_class: type[nnUNetBaseDataset],
    label_manager: Any,
    modalities: Modalities,
    *,
    show_progress: bool = True,
) -> None:
    """Check that each modality of each case is finite and not constant, and that labels hold the dataset's values only.

    A channel that the case table beside `folder` says is absent must be all NaN, and the label of a case that it says
    is unlabelled must be 0 throughout.

    When all pass, a note beside the folder (`NOTE_NAME`) says so, so that they are read only once; where it cannot be
    written, they are read each time.

    Args:
        folder: of the preprocessed cases of a configuration.
        dataset_class: nnU-Net's class that reads them.
        label_manager: nnU-Net's, of the dataset.
        modalities: the dataset's.
        show_progress: whether to show a progress bar.

    Raises:
        UserError: one error that lists every case that cannot be trained with.
    """
    known = known_labels(label_manager) | {OUTSIDE}
    cases = sorted(dataset_class.get_identifiers(str(folder)))
    table = read_case_table(folder.parent)
    state = _state(folder, len(cases), known, modalities, table)
    note = folder.with_name(NOTE_NAME.format(folder=folder.name))
    if _is_noted(note, state):
        return
    check = partial(_check_case, dataset_class, str(folder), known, modalities, table)
    results = map_in_threads(check, cases, "Checking preprocessed cases", show_progress=show_progress)
    problems = [problem for found in results for problem in found]
    if problems:
        raise UserError(
            f"The preprocessed cases in {folder} have {counted(len(problems), 'problem')}; nothing was trained:\n"
            f"{listed(problems, MOST_NAMED_PROBLEMS)}\n"
            "Mend the raw data, then plan and preprocess again: `unimrseg plan` names the files, and checks the rest."
        )
    try:
        write_json(note, state)
    except UserError as error:
        print(f"The preprocessed cases are in order; they will be checked again the next time, for {error}")


def _state(
    folder: Path,
    num_cases: int,
    known: frozenset[int],
    modalities: Modalities,
    table: Mapping[str, TrainingCase],
) -> dict[str, Any]:
    complete = TrainingCase(tuple(modalities), labelled=True)
    partial_cases = {name: str(case) for name, case in sorted(table.items()) if case != complete}
    digest = hashlib.sha256(json.dumps(partial_cases).encode())
    for path in sorted(folder.iterdir()):
        status = path.stat()
        digest.update(json.dumps([path.name, status.st_size, status.st_mtime_ns]).encode())
    return {
        "format": FORMAT,
        "num_cases": num_cases,
        "labels": sorted(known),
        "modalities": modalities.groups or list(modalities),
        "files_and_table_sha256": digest.hexdigest(),
    }


def _is_noted(note: Path, state: dict[str, Any]) -> bool:
    try:
        return note.is_file() and read_json(note) == state
    except UserError:
        return False


def _check_case(
    dataset_class: type[nnUNetBaseDataset],
    folder: str,
    known: frozenset[int],
    modalities: Modalities,
    table: Mapping[str, TrainingCase],
    case: str,
) -> list[str]:
    try:
        data, label, *_ = dataset_class(folder, [case]).load_case(case)
        data, label = np.asarray(data[:]), np.asarray(label[:])
    except Exception as error:  # whatever the format's library raises for a damaged file
        return [f"case '{case}' cannot be read: {in_one_line(error)}. Preprocess it again."]
    expected = table.get(case, TrainingCase(tuple(modalities), labelled=True))
    problems = []
    for channel, name in enumerate(modalities.channel_names):
        if modalities.names[modalities.modality_of_channel(channel)] not in expected.available:
            if not np.isnan(data[channel]).all():
                problems.append(
                    f"case '{case}': {CASE_TABLE_NAME} says that {name} (channel {channel}) is absent, but there are "
                    "values. Run `unimrseg plan` again."
                )
        elif (problem := value_problem(data[channel])) and not _is_one_of_several(channel, data, modalities):
            problems.append(
                f"case '{case}': normalised, the values of {name} (channel {channel}) are {problem}; look at its raw "
                "values."
            )
    if expected.labelled:
        unknown = unknown_values(label, known)
        return [*problems, *([f"case '{case}': its label holds {unknown}."] if unknown else [])]
    if label.any():
        problems.append(
            f"case '{case}': {CASE_TABLE_NAME} says that it has no label, but there is one. Run `unimrseg plan` again."
        )
    return problems


def _is_one_of_several(channel: int, data: np.ndarray, modalities: Modalities) -> bool:
    """Whether a channel is constant, but not the others of its modality, as the blue of a red and green image."""
    others = modalities.channels[modalities.modality_of_channel(channel)]
    return bool(np.isfinite(data[channel]).all()) and any(value_problem(data[other]) is None for other in others)
