"""What is to be predicted: the files of each case, where its segmentation goes, and what stands in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunetv2_unimrseg.data.cases import Files, check_cases, find_cases, naming_problems
from nnunetv2_unimrseg.data.reading import case_name
from nnunetv2_unimrseg.data.whole_image import segmentation_problem
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.arrays import Names
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.utils.files import file_problem, place_problem, write_json
from nnunetv2_unimrseg.utils.output_folder import check_output_files, check_output_folder

if TYPE_CHECKING:
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

Outputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

PROBABILITIES_ENDING, PROPERTIES_ENDING = ".npz", ".pkl"


@dataclass(frozen=True)
class Job:
    """One case to predict.

    Attributes:
        files: any non-empty subset of its files.
        output: the path to write to, without the file ending; None to return the segmentation.
        previous: for a cascade, the segmentation of the previous stage.
    """

    files: list[str]
    output: str | None
    previous: str | None


@dataclass(frozen=True)
class Setting:
    """What preprocessing and export need of a predictor, in other processes too.

    Attributes:
        plans_manager: the model's plans.
        configuration_manager: the configuration that the model was trained with.
        dataset_json: content of the model's dataset.json.
        save_probabilities: whether the class probabilities are written, or returned, too.
        verbose: whether preprocessing prints shapes.
    """

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict[str, Any]
    save_probabilities: bool
    verbose: bool

    @property
    def file_ending(self) -> str:
        """The ending of images and segmentations."""
        return str(self.dataset_json["file_ending"])

    @property
    def modalities(self) -> Modalities:
        """The modalities that the model was trained with, in channel order."""
        return Modalities.from_dataset_json(self.dataset_json)

    @property
    def reader(self) -> BaseReaderWriter:
        """The reader and writer of images that the plans name."""
        return self.plans_manager.image_reader_writer_class()


def find_jobs(
    source: Files,
    output: Outputs | None,
    setting: Setting,
    *,
    overwrite: bool,
    previous: str | None,
    part: slice,
    chosen: Names | None,
    show_progress: bool,
) -> list[tuple[Job, Subset]]:
    """Find the cases to predict and check them, their files and where they are written to.

    Args:
        source: a folder, or the files of each case, in a list or by modality.
        output: a folder, or a path without file ending for each case, or None.
        setting: the predictor's.
        overwrite: whether cases that are done are predicted again.
        previous: for a cascade, the folder of the previous stage's segmentations.
        part: which of the cases are to be predicted.
        chosen: the modalities to use, by name or channel number; None uses all files.
        show_progress: whether a progress bar is shown.

    Returns:
        Each case with the subset of the modalities that it has.

    Raises:
        UserError: one error that lists every problem of every case.
    """
    modalities, ending, reader = setting.modalities, setting.file_ending, setting.reader
    subset = None if chosen is None else modalities.subset(chosen)
    cases, problems = find_cases(source, modalities, ending, subset)
    outputs, unwritable = planned_outputs(source, output, cases, ending, complete=not problems)
    problems += unwritable
    if previous is not None and isinstance(output, str | os.PathLike):
        check_output_folder(output, [previous])
    problems += previous_stage_problems(cases[part], previous, ending, setting.configuration_manager, reader)
    jobs = [
        Job(files, place, previous and os.path.join(previous, case_name(files, ending) + ending))
        for files, place in list(zip(cases, outputs, strict=True))[part]
    ]
    if not overwrite and not problems:
        jobs = [job for job in jobs if not _is_done(job, setting)]
    available = check_cases(
        [job.files for job in jobs],
        reader,
        modalities,
        ending,
        plans=(setting.plans_manager, setting.configuration_manager),
        chosen=subset,
        problems=problems,
        show_progress=show_progress,
    )
    return list(zip(jobs, available, strict=True))


def _is_done(job: Job, setting: Setting) -> bool:
    if job.output is None:
        return False
    problem = export_problem(job.output, setting)
    if problem:
        print(f"{problem}. It is predicted again.")
    return problem is None


def export_problem(output: str, setting: Setting) -> str | None:
    """Return why a case is not done: "" where nothing of it is there, what is wrong with its files, or None."""
    segmentation = Path(output + setting.file_ending)
    endings = (PROBABILITIES_ENDING, PROPERTIES_ENDING) if setting.save_probabilities else ()
    files = [segmentation, *(Path(output + ending) for ending in endings)]
    if not all(file.exists() for file in files):
        return ""
    for file in files:
        problem = segmentation_problem(file, setting.reader) if file == segmentation else file_problem(file)
        if problem:
            return f"{file} is not whole: {problem}"
    return None


def planned_outputs(
    source: Files, output: Outputs | None, cases: Sequence[Sequence[str]], file_ending: str, *, complete: bool = True
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
    problems: list[str] = []
    for name in (case_name(files, file_ending) for files in cases):
        path = Path(previous) / f"{name}{file_ending}"
        if not path.is_file():
            problems.append(f"case '{name}': the previous stage's segmentation {path} is not there.")
        elif problem := segmentation_problem(path, reader):
            problems.append(f"case '{name}': the previous stage's segmentation {path} cannot be used: {problem}.")
    return problems


def record_call(
    output: Outputs, arguments: Mapping[str, Any], dataset_json: Mapping[str, Any], plans: Mapping[str, Any]
) -> None:
    """Write, as nnU-Net does, how the segmentations were asked for, and what its postprocessing needs of the model."""
    folder = Path(output) if isinstance(output, str | os.PathLike) else Path(output[0]).parent
    recorded = json.loads(json.dumps(arguments, default=str))
    write_json(folder / "predict_from_raw_data_args.json", recorded)
    write_json(folder / "dataset.json", dataset_json)
    write_json(folder / "plans.json", plans)
