"""nnU-Net's predictor, for cases that lack modalities."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_unimrseg.data.cases import (
    Files,
    describe_availability,
    print_availability,
    write_availability,
)
from nnunetv2_unimrseg.data.preprocessing import enable_incomplete_cases, planned_modalities
from nnunetv2_unimrseg.data.reading import case_name
from nnunetv2_unimrseg.data.segmentation_writer import write_whole_segmentations
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.arrays import Names, as_list, check_properties, scatter
from nnunetv2_unimrseg.inference.jobs import Job, Setting, find_jobs, record_call
from nnunetv2_unimrseg.inference.options import check_numbers
from nnunetv2_unimrseg.inference.pipeline import predict_jobs
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.modalities import Modalities, Subset
from nnunetv2_unimrseg.nnunet.modalities_in_plans import check_planned_modalities
from nnunetv2_unimrseg.nnunet.trained_model import Fold, build_trained_network, segmentation_checkpoints
from nnunetv2_unimrseg.utils.files import read_json

BeforePredicting = Callable[[Path | None, Mapping[str, Mapping[str, Sequence[str]]]], None]
"""Takes an output folder and, by name of the case, its modalities: `{"available": [...], "missing": [...]}`."""


def _print_availability(folder: Path | None, cases: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    print_availability(cases)


class UniMRSegPredictor(nnUNetPredictor):
    """Segments cases that have any non-empty subset of the modalities the model was trained with.

    Used like nnU-Net's predictor; what is added is keyword-only. All cases are checked before any is computed, and
    `modalities.json` beside the segmentations says which modalities each case had.
    """

    fills_zeros = False
    """Whether the loaded network does not know of missing modalities and sees zeros in their channels."""

    checkpoints: Sequence[tuple[Path, dict[str, Any]]] = ()
    """Path and content, without the state of the optimizer, of the checkpoint of each fold that was loaded."""

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[Fold] | Fold | None,
        checkpoint_name: str = "checkpoint_final.pth",
        *,
        zero_fill: bool = False,
    ) -> None:
        """Load a model trained by stage 2, stage 3 or the modality-dropout control.

        Args:
            model_training_output_dir: the folder that holds `fold_X`.
            use_folds: the folds whose predictions are averaged; None for all that have the checkpoint.
            checkpoint_name: the file to load from each fold.
            zero_fill: accept a model of any nnU-Net trainer; one that does not know of missing modalities sees zeros
                in their channels, after normalisation (see `fills_zeros`).

        Raises:
            UserError: when the folder, a fold or its checkpoint is absent, damaged or does not fit the plans beside
                it; for a stage-1 model and, without `zero_fill`, for one that needs every modality.
        """
        if isinstance(use_folds, str | int):
            use_folds = [use_folds]
        folder = Path(model_training_output_dir)
        read = segmentation_checkpoints(folder, use_folds, checkpoint_name, any_trainer=zero_fill)
        self.initialize_from_checkpoints(list(read), zero_fill=zero_fill)

    def initialize_from_checkpoints(
        self, checkpoints: Sequence[tuple[Path, dict[str, Any]]], *, zero_fill: bool = False
    ) -> None:
        """Load a model whose checkpoints have been read already; otherwise as `initialize_from_trained_model_folder`.

        Args:
            checkpoints: what `segmentation_checkpoints` yields: path and content of one checkpoint a fold.
            zero_fill: accept a network that does not know of missing modalities (see `fills_zeros`).

        Raises:
            UserError: when plans.json or dataset.json beside the checkpoints cannot be read.
        """
        path, first = checkpoints[0]
        folder = path.parents[1]
        plans_manager, dataset_json = PlansManager(read_json(folder / "plans.json")), read_json(folder / "dataset.json")
        configuration_manager = plans_manager.get_configuration(first["init_args"]["configuration"])
        network = build_trained_network(first, path, plans_manager, configuration_manager, dataset_json)
        self.manual_initialization(
            network,
            plans_manager,
            configuration_manager,
            [checkpoint["network_weights"] for _, checkpoint in checkpoints],
            dataset_json,
            first["trainer_name"],
            first.get("inference_allowed_mirroring_axes"),
        )
        self.checkpoints = checkpoints
        self.fills_zeros = zero_fill and not isinstance(network, MissingModalityUNet)

    def manual_initialization(
        self,
        network: nn.Module,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        parameters: list[dict[str, torch.Tensor]] | None,
        dataset_json: dict[str, Any],
        trainer_name: str,
        inference_allowed_mirroring_axes: tuple[int, ...] | None,
    ) -> None:
        """Use a network that is in memory; it must take NaN channels for missing ones, as `build_network`'s do."""
        super().manual_initialization(
            network,
            plans_manager,
            configuration_manager,
            parameters,
            dataset_json,
            trainer_name,
            inference_allowed_mirroring_axes,
        )
        self.checkpoints, self.fills_zeros = (), False
        modalities = planned_modalities(self.configuration_manager, self.dataset_json)
        if isinstance(network, MissingModalityUNet):
            check_planned_modalities(self.configuration_manager.configuration, modalities)
        enable_incomplete_cases(self.configuration_manager)
        write_whole_segmentations(self.plans_manager)
        self.configuration_manager.folder_was_checked = True  # by find_cases, for whatever this predictor is given

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Predict a preprocessed image `(C, X, Y, Z)`, NaN in missing channels, as nnU-Net does."""
        if self.fills_zeros:
            input_image = torch.nan_to_num(input_image, nan=0.0)
        logits: torch.Tensor = super().predict_sliding_window_return_logits(input_image)
        return logits

    @property
    def modalities(self) -> Modalities:
        """The modalities that the model was trained with, in channel order."""
        return self._setting(save_probabilities=False).modalities

    def _setting(self, *, save_probabilities: bool) -> Setting:
        if self.dataset_json is None:
            raise UserError("No model is loaded. Call initialize_from_trained_model_folder first.")
        managers = self.plans_manager, self.configuration_manager
        return Setting(*managers, self.dataset_json, save_probabilities, self.verbose_preprocessing)

    def predict_from_files(
        self,
        list_of_lists_or_source_folder: Files,
        output_folder_or_list_of_truncated_output_files: str | os.PathLike[str] | Sequence[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = default_num_processes,
        num_processes_segmentation_export: int = default_num_processes,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
        *,
        modalities: Names | None = None,
        before_predicting: BeforePredicting | None = None,
    ) -> list[Any]:
        """Segment cases, each given by any non-empty subset of its files.

        Args:
            list_of_lists_or_source_folder: a folder, or the files of each case. A case may be a mapping from modality
                to file, `[{"T1": "a.nii.gz"}]`, and may have a name, `{"patient": {"T1": "a.nii.gz"}}`; then files may
                have any names. In lists, files that give all channels are positional; otherwise the `_XXXX` suffix says
                which channel a file is.
            output_folder_or_list_of_truncated_output_files: a folder, or a path without file ending for each case, or
                None to return the segmentations.
            save_probabilities: also write, or return, the class probabilities (0 to 1).
            overwrite: False leaves out the cases whose files are there and whole.
            num_processes_preprocessing: 0 preprocesses in this process.
            num_processes_segmentation_export: 0 exports in this process.
            folder_with_segs_from_prev_stage: the segmentations of a cascade's previous stage; None without a cascade.
            num_parts: predict only every `num_parts`-th case, to divide the cases among several calls.
            part_id: the number of the first case to predict, from 0 to `num_parts` - 1.
            modalities: use only these, by name or channel number; None uses every file.
            before_predicting: called once for each output folder (None: nothing is written), after all checks, with
                the modalities of its cases; None prints them.

        Returns:
            An entry for each case that was predicted: None where it was written, otherwise its segmentation, or with
            `save_probabilities` the pair of segmentation and probabilities.

        Raises:
            UserError: one error that lists every problem of every case, before anything is computed or written; and
                when a segmentation cannot be written whole, while those that were finished before stay.
        """
        processes = num_processes_preprocessing, num_processes_segmentation_export
        check_numbers(num_parts, part_id, processes, "processes")
        setting = self._setting(save_probabilities=save_probabilities)
        found = find_jobs(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            setting,
            overwrite=overwrite,
            previous=folder_with_segs_from_prev_stage,
            part=slice(part_id, None, num_parts),
            chosen=modalities,
            show_progress=self.allow_tqdm,
        )
        jobs = [job for job, _ in found]
        self._report(found, before_predicting or _print_availability)
        if jobs and output_folder_or_list_of_truncated_output_files is not None:
            record_call(
                output_folder_or_list_of_truncated_output_files,
                {
                    "list_of_lists_or_source_folder": list_of_lists_or_source_folder,
                    "output_folder_or_list_of_truncated_output_files": output_folder_or_list_of_truncated_output_files,
                    "save_probabilities": save_probabilities,
                    "overwrite": overwrite,
                    "num_processes_preprocessing": num_processes_preprocessing,
                    "num_processes_segmentation_export": num_processes_segmentation_export,
                    "folder_with_segs_from_prev_stage": folder_with_segs_from_prev_stage,
                    "num_parts": num_parts,
                    "part_id": part_id,
                    "modalities": modalities,
                },
                self.dataset_json,
                self.plans_manager.plans,
            )
        return predict_jobs(
            self,
            jobs,
            setting,
            num_processes_preprocessing=num_processes_preprocessing,
            num_processes_export=num_processes_segmentation_export,
        )

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: Files,
        output_folder_or_list_of_truncated_output_files: str | os.PathLike[str] | Sequence[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
        *,
        modalities: Names | None = None,
    ) -> list[Any]:
        """Segment cases without other processes; see `predict_from_files`."""
        return self.predict_from_files(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities,
            overwrite,
            0,
            0,
            folder_with_segs_from_prev_stage,
            modalities=modalities,
        )

    def _report(self, jobs: Sequence[tuple[Job, Subset]], before_predicting: BeforePredicting) -> None:
        folders: dict[Path | None, dict[str, Any]] = {}
        for job, subset in jobs:
            name = case_name(job.files, self.dataset_json["file_ending"])
            folder, name = (None, name) if job.output is None else (Path(job.output).parent, Path(job.output).name)
            folders.setdefault(folder, {})[name] = describe_availability(subset, self.modalities)
        for folder, reports in folders.items():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write_availability(folder, reports)
            before_predicting(folder, reports)

    def predict_from_list_of_npy_arrays(
        self,
        image_or_list_of_images: np.ndarray | list[np.ndarray],
        segs_from_prev_stage_or_list_of_segs_from_prev_stage: np.ndarray | list[np.ndarray] | None,
        properties_or_list_of_properties: dict[str, Any] | list[dict[str, Any]],
        truncated_ofname: str | list[str] | None,
        num_processes: int = 3,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
        *,
        available: Names | Sequence[Names] | None = None,
    ) -> list[Any]:
        """Segment raw arrays; see `predict_single_npy_array`.

        Args:
            image_or_list_of_images: the images, each as `predict_single_npy_array` takes it.
            segs_from_prev_stage_or_list_of_segs_from_prev_stage: for a cascade, the segmentation of each image by the
                previous stage, (1, X, Y, Z); None without a cascade.
            properties_or_list_of_properties: the properties of each image.
            truncated_ofname: the path to write each segmentation to, without file ending; None returns them.
            num_processes: processes that preprocess.
            save_probabilities: also write, or return, the class probabilities (0 to 1).
            num_processes_segmentation_export: processes that export.
            available: the modalities that are there, the same for all images, or one such list for each image.

        Raises:
            UserError: as `predict_single_npy_array`, and for another number of properties, outputs or lists of
                modalities than of images.
        """
        images, properties = as_list(image_or_list_of_images), as_list(properties_or_list_of_properties)
        outputs = as_list(truncated_ofname)
        if len(properties) != len(images) or len(outputs) not in (0, len(images)):
            raise UserError(
                f"There are {len(images)} images, {len(properties)} properties and {len(outputs)} output files; give "
                "properties, and where something is to be written a file, for each image."
            )
        for entry in properties:
            check_properties(entry, self.plans_manager.plans["image_reader_writer"] if outputs else None)
        each: list[Any] = [available] * len(images)
        if available is not None and len(available) and not isinstance(available[0], str | int):
            each = list(available)
            if len(each) != len(images):
                raise UserError(f"There are {len(images)} images and {len(each)} lists of available modalities.")
        predicted: list[Any] = super().predict_from_list_of_npy_arrays(
            [scatter(image, self.modalities, names) for image, names in zip(images, each, strict=True)],
            segs_from_prev_stage_or_list_of_segs_from_prev_stage,
            properties_or_list_of_properties,
            truncated_ofname,
            num_processes,
            save_probabilities,
            num_processes_segmentation_export,
        )
        return predicted

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict[str, Any],
        segmentation_previous_stage: np.ndarray | None = None,
        output_file_truncated: str | None = None,
        save_or_return_probabilities: bool = False,
        *,
        available: Names | None = None,
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray] | None:
        """Segment one raw array.

        Args:
            input_image: all C channels, (C, X, Y, Z), or only those named in `available`, in that order.
            image_properties: as the plans' reader returns them; `spacing` is needed.
            segmentation_previous_stage: for a cascade, the previous stage's segmentation, (1, X, Y, Z).
            output_file_truncated: the path to write the segmentation to, without file ending; None returns it.
            save_or_return_probabilities: also write, or return, the class probabilities (0 to 1).
            available: the modalities that are there, by name or channel number; other channels are left out. None:
                all but those of one constant intensity.

        Raises:
            UserError: for an unknown or doubled modality, another number of channels, or properties without a spacing.
        """
        reader = self.plans_manager.plans["image_reader_writer"] if output_file_truncated is not None else None
        check_properties(image_properties, reader)
        predicted: np.ndarray | tuple[np.ndarray, np.ndarray] | None = super().predict_single_npy_array(
            scatter(input_image, self.modalities, available),
            image_properties,
            segmentation_previous_stage,
            output_file_truncated,
            save_or_return_probabilities,
        )
        return predicted
