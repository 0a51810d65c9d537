"""What is to be predicted: the files of each case, where its segmentation goes, and what stands in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_unimrseg.data.cases import naming_problems
from nnunetv2_unimrseg.data.reading import case_name
from nnunetv2_unimrseg.data.whole_image import segmentation_problem
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.utils.files import place_problem, write_json
from nnunetv2_unimrseg.utils.output_folder import check_output_files, check_output_folder

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

Files = str | os.PathLike | Sequence[Sequence[str | os.PathLike]]
Outputs = str | os.PathLike | Sequence[str | os.PathLike] | None


@dataclass(frozen=True)
class Job:
    """One case to predict.

    Attributes:
        files: any non-empty subset of its files.
        output: the path to write to, without the file ending; None to return the segmentation.
        previous: for a cascade, the segmentation of the previous stage.
    """

    files: tuple[str, ...]
    output: str | None
    previous: str | None


def check_numbers(num_parts: int, part_id: int, processes: tuple[int, int]) -> None:
    """Check which part of the cases is to be predicted, and with how many processes.

    Raises:
        UserError: when one of the numbers is impossible.
    """
    if not 0 <= part_id < num_parts:
        raise UserError(f"part_id must be from 0 to num_parts - 1 = {num_parts - 1}; it is {part_id}.")
    if min(processes) < 0:
        raise UserError(
            "The numbers of processes for preprocessing (npp) and for export (nps) must be at least 0 (no other "
            f"processes); they are {processes[0]} and {processes[1]}."
        )


def planned_outputs(
    source: Files, output: Outputs, cases: Sequence[Sequence[str]], file_ending: str, *, complete: bool = True
) -> tuple[Sequence[str | None], list[str]]:
    """Say where each case is written to.

    Args:
        source: what the cases were found in.
        output: a folder, or a path without file ending for each case, or None.
        cases: the files of each case.
        file_ending: as in dataset.json.
        complete: whether these are all cases; otherwise there may be more outputs.

    Returns:
        The path for each case without the file ending, None where its segmentation is returned; and the problems.

    Raises:
        UserError: when output and input overlap, when nothing can be written there, or when there is not one output
            for each case.
    """
    if output is None:
        return [None] * len(cases), []
    problems: list[str] = []
    inputs = [source] if isinstance(source, str | os.PathLike) else [file for files in cases for file in files]
    if isinstance(output, str | os.PathLike):
        check_output_folder(output, inputs)
        problems = naming_problems(cases, file_ending)
        outputs = [os.path.join(output, case_name(files, file_ending)) for files in cases]
    else:
        outputs = [os.fspath(path) for path in output]
        check_output_files([path + file_ending for path in outputs], inputs)
        if len(outputs) != len(cases):
            if complete:
                raise UserError(
                    f"There are {len(cases)} cases and {len(outputs)} output files; give one for each case."
                )
            return [None] * len(cases), []
    for path in outputs:
        if problem := place_problem(Path(path + file_ending)):
            problems.append(
                f"{path}{file_ending} cannot be written: {problem} Remove it, or choose another output (-o)."
            )
    return outputs, problems


def previous_stage_problems(
    cases: Sequence[Sequence[str]],
    previous: str | None,
    file_ending: str,
    configuration_manager: ConfigurationManager,
    reader: BaseReaderWriter,
) -> list[str]:
    """Say which of the segmentations that the second stage of a cascade needs are not there or not whole.

    Raises:
        UserError: when a cascade gets no folder of them.
    """
    stage = configuration_manager.previous_stage_name
    if stage is not None and previous is None:
        raise UserError(
            f"This is a cascade: it needs the segmentations of its previous stage, {stage}. Predict with that first "
            "and give the folder (-prev_stage_predictions, folder_with_segs_from_prev_stage)."
        )
    if previous is None:
        return []
    problems = []
    for name in (case_name(files, file_ending) for files in cases):
        path = Path(previous) / f"{name}{file_ending}"
        if not path.is_file():
            problems.append(f"case '{name}': the previous stage's segmentation {path} is not there.")
        elif problem := segmentation_problem(path, reader):
            problems.append(f"case '{name}': the previous stage's segmentation {path} cannot be used: {problem}.")
    return problems


def record_call(output: Outputs, arguments: Mapping[str, Any], dataset_json: dict, plans: dict) -> None:
    """Write, as nnU-Net does, how the segmentations were asked for, and what its postprocessing needs of the model."""
    folder = Path(output) if isinstance(output, str | os.PathLike) else Path(output[0]).parent
    recorded = json.loads(json.dumps(arguments, default=str))
    write_json(folder / "predict_from_raw_data_args.json", recorded)
    write_json(folder / "dataset.json", dataset_json)
    write_json(folder / "plans.json", plans)
