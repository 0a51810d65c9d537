"""nnU-Net's predictor, for cases that lack modalities."""

from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch._dynamo import OptimizedModule

from nnunetv2_unimrseg.cases import check_cases, find_cases, naming_problems, print_report, report_of, write_report
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.preprocessing import modalities_of, read_absent_files
from nnunetv2_unimrseg.reading import case_name
from nnunetv2_unimrseg.trained_model import Fold, check_trained_model, findable_trainers

Files = str | os.PathLike | Sequence[Sequence[str | os.PathLike]]
Names = Sequence[str | int]


class UniMRSegPredictor(nnUNetPredictor):
    """Segments cases that have any non-empty subset of the modalities the model was trained with.

    Used like nnU-Net's predictor; what is added is keyword-only. All cases are checked before any is computed, and
    `modalities.json` beside the segmentations says which modalities each case had.
    """

    fills_zeros = False
    """Whether the loaded network does not know of missing modalities and sees zeros in their channels."""

    checkpoints: Sequence[Path] = ()
    """The files that were loaded, one a fold."""

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
        self.checkpoints = check_trained_model(
            Path(model_training_output_dir), use_folds, checkpoint_name, any_trainer=zero_fill
        )
        with findable_trainers(), contextlib.redirect_stdout(io.StringIO()):  # where nnU-Net found the trainer
            super().initialize_from_trained_model_folder(str(model_training_output_dir), use_folds, checkpoint_name)
        network = self.network._orig_mod if isinstance(self.network, OptimizedModule) else self.network
        self.fills_zeros = zero_fill and not isinstance(network, MissingModalityUNet)
        self._accept_absent_files()

    def manual_initialization(
        self,
        network: nn.Module,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        parameters: list[dict] | None,
        dataset_json: dict,
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
        self._accept_absent_files()

    def _accept_absent_files(self) -> None:
        modalities_of(self.configuration_manager, self.dataset_json)
        read_absent_files(self.configuration_manager)

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Predict a preprocessed image `(C, X, Y, Z)`, NaN in missing channels, as nnU-Net does."""
        if self.fills_zeros:
            input_image = torch.nan_to_num(input_image, nan=0.0)
        return super().predict_sliding_window_return_logits(input_image)

    @property
    def modalities(self) -> Modalities:
        """The modalities that the model was trained with, in channel order."""
        if self.dataset_json is None:
            raise UserError("No model is loaded. Call initialize_from_trained_model_folder first.")
        return Modalities.from_dataset_json(self.dataset_json)

    def predict_from_files(
        self,
        list_of_lists_or_source_folder: Files,
        output_folder_or_list_of_truncated_output_files: str | os.PathLike | Sequence[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = default_num_processes,
        num_processes_segmentation_export: int = default_num_processes,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
        *,
        modalities: Names | None = None,
    ) -> list[np.ndarray] | None:
        """Segment cases, each given by any non-empty subset of its files.

        Args:
            list_of_lists_or_source_folder: a folder, or the files of each case. Files that give all channels are
                positional; otherwise the `_XXXX` suffix says which channel a file is.
            output_folder_or_list_of_truncated_output_files: a folder, or a path without file ending for each case, or
                None to return the segmentations.
            save_probabilities: as in nnU-Net, like all that follows.
            overwrite: False leaves out cases that are done.
            num_processes_preprocessing: 0, if that is 0 too: no other processes.
            num_processes_segmentation_export: see above.
            folder_with_segs_from_prev_stage: for a cascade.
            num_parts: predict every `num_parts`-th case only ...
            part_id: ... starting with this one.
            modalities: use only these, by name or channel number; None uses every file.

        Returns:
            What nnU-Net returns: one entry a case.

        Raises:
            UserError: one error that lists every problem of every case; then nothing was computed or written.
        """
        if not 0 <= part_id < num_parts:
            raise UserError(f"part_id must be from 0 to num_parts - 1 = {num_parts - 1}; it is {part_id}.")
        processes = num_processes_preprocessing, num_processes_segmentation_export
        if min(processes) < 0 or (min(processes) == 0) != (max(processes) == 0):
            raise UserError(
                "The numbers of processes for preprocessing (npp) and for export (nps) are either both 0 (no other "
                f"processes) or both at least 1; they are {processes[0]} and {processes[1]}."
            )
        part = slice(part_id, None, num_parts)
        cases, output = self._checked(
            list_of_lists_or_source_folder,
            output_folder_or_list_of_truncated_output_files,
            save_probabilities=save_probabilities,
            overwrite=overwrite,
            previous=folder_with_segs_from_prev_stage,
            part=part,
            chosen=modalities,
        )
        if max(processes) == 0:
            cases, output = cases[part], output[part] if isinstance(output, list) else output
            if not cases:
                return []
            return self._stock().predict_from_files_sequential(
                cases, output, save_probabilities, overwrite, folder_with_segs_from_prev_stage
            )
        return self._stock().predict_from_files(
            cases,
            output,
            save_probabilities,
            overwrite,
            *processes,
            folder_with_segs_from_prev_stage,
            num_parts,
            part_id,
        )

    def predict_from_files_sequential(
        self,
        list_of_lists_or_source_folder: Files,
        output_folder_or_list_of_truncated_output_files: str | os.PathLike | Sequence[str] | None,
        save_probabilities: bool = False,
        overwrite: bool = True,
        folder_with_segs_from_prev_stage: str | None = None,
        *,
        modalities: Names | None = None,
    ) -> list[np.ndarray] | None:
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

    def _stock(self) -> nnUNetPredictor:
        """Return this predictor with nnU-Net's own entrances, which take no parameter that nnU-Net does not know."""
        entrances = {
            name: getattr(nnUNetPredictor, name) for name in ("predict_from_files", "predict_from_files_sequential")
        }
        stock = copy.copy(self)
        stock.__class__ = type(type(self).__name__, (type(self),), entrances)
        return stock

    def _checked(
        self,
        source: Files,
        output: str | os.PathLike | Sequence[str] | None,
        *,
        save_probabilities: bool,
        overwrite: bool,
        previous: str | None,
        part: slice,
        chosen: Names | None,
    ) -> tuple[list[list[str]], str | list[str] | None]:
        """Check what is to be predicted, report its modalities, and return all cases and outputs as nnU-Net's types."""
        modalities, ending = self.modalities, self.dataset_json["file_ending"]
        subset = None if chosen is None else modalities.subset(chosen)
        problems: list[str] = []
        cases = find_cases(source, modalities, ending, subset, problems)
        if isinstance(output, str | os.PathLike):
            output = os.fspath(output)
            problems += naming_problems(cases, ending)
        elif output is not None:
            output = [os.fspath(path) for path in output]
            if len(output) != len(cases) and not problems:
                raise UserError(f"There are {len(cases)} cases and {len(output)} output files; give one for each case.")
        problems += self._cascade_problems(cases[part], previous)
        if problems:
            selected, outputs = cases[part], None
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                selected, outputs, _ = self._manage_input_and_output_lists(
                    cases, output, previous, overwrite, part.start, part.step, save_probabilities
                )
        reader = self.plans_manager.image_reader_writer_class()
        available = check_cases(
            selected, reader, modalities, ending, chosen=subset, problems=problems, show_progress=self.allow_tqdm
        )
        self._report([case_name(files, ending) for files in selected], outputs, available)
        for folder in {Path(output)} if isinstance(output, str) else {Path(path).parent for path in output or ()}:
            folder.mkdir(parents=True, exist_ok=True)
        return cases, output

    def _cascade_problems(self, cases: Sequence[Sequence[str]], previous: str | None) -> list[str]:
        stage = self.configuration_manager.previous_stage_name
        if stage is not None and previous is None:
            raise UserError(
                f"This is a cascade: it needs the segmentations of its previous stage, {stage}. Predict with that "
                "first and give the folder (-prev_stage_predictions, folder_with_segs_from_prev_stage)."
            )
        if previous is None:
            return []
        ending = self.dataset_json["file_ending"]
        needed = {name: Path(previous) / f"{name}{ending}" for name in (case_name(files, ending) for files in cases)}
        return [
            f"case '{name}': the previous stage's segmentation {path} is not there."
            for name, path in needed.items()
            if not path.is_file()
        ]

    def _report(self, names: Sequence[str], outputs: Sequence[str] | None, available: Sequence[tuple]) -> None:
        folders: dict[Path, dict[str, Any]] = {}
        for index, subset in enumerate(available):
            written = Path(names[index]) if outputs is None else Path(outputs[index])
            folders.setdefault(written.parent, {})[written.name] = report_of(subset, self.modalities)
        for folder, reports in folders.items():
            if outputs is not None:
                write_report(folder, reports)
            self.report_cases(None if outputs is None else folder, reports)

    def report_cases(self, folder: Path | None, reports: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Tell, before predicting into `folder`, what each case has (see `cases.report_of`); may be replaced."""
        print_report(reports)

    def predict_from_list_of_npy_arrays(
        self,
        image_or_list_of_images: np.ndarray | list[np.ndarray],
        segs_from_prev_stage_or_list_of_segs_from_prev_stage: np.ndarray | list[np.ndarray] | None,
        properties_or_list_of_properties: dict | list[dict],
        truncated_ofname: str | list[str] | None,
        num_processes: int = 3,
        save_probabilities: bool = False,
        num_processes_segmentation_export: int = default_num_processes,
        *,
        available: Names | Sequence[Names] | None = None,
    ) -> list:
        """Segment raw arrays; see `predict_single_npy_array`.

        Args:
            image_or_list_of_images: as in nnU-Net, like all others.
            segs_from_prev_stage_or_list_of_segs_from_prev_stage: see above.
            properties_or_list_of_properties: see above.
            truncated_ofname: see above.
            num_processes: see above.
            save_probabilities: see above.
            num_processes_segmentation_export: see above.
            available: the modalities that are there, the same for all images, or one such list for each image.
        """
        images = image_or_list_of_images if isinstance(image_or_list_of_images, list) else [image_or_list_of_images]
        each = [available] * len(images)
        if available is not None and len(available) and not isinstance(available[0], str | int):
            each = list(available)
            if len(each) != len(images):
                raise UserError(f"There are {len(images)} images and {len(each)} lists of available modalities.")
        return super().predict_from_list_of_npy_arrays(
            [scatter(image, self.modalities, names) for image, names in zip(images, each, strict=True)],
            segs_from_prev_stage_or_list_of_segs_from_prev_stage,
            properties_or_list_of_properties,
            truncated_ofname,
            num_processes,
            save_probabilities,
            num_processes_segmentation_export,
        )

    def predict_single_npy_array(
        self,
        input_image: np.ndarray,
        image_properties: dict,
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
            segmentation_previous_stage: as in nnU-Net, like all that follows.
            output_file_truncated: see above.
            save_or_return_probabilities: see above.
            available: the modalities that are there, by name or channel number; other channels are left out. None:
                all but those of one constant intensity.

        Raises:
            UserError: for an unknown or doubled modality, or another number of channels.
        """
        return super().predict_single_npy_array(
            scatter(input_image, self.modalities, available),
            image_properties,
            segmentation_previous_stage,
            output_file_truncated,
            save_or_return_probabilities,
        )


def scatter(image: np.ndarray, modalities: Modalities, available: Names | None) -> np.ndarray:
    """Put the available modalities of a raw image into their channels, zeros into all others.

    Args:
        image: (C, X, Y, Z), or (len(available), X, Y, Z) in the order of `available`.
        modalities: the C modalities.
        available: names or channel numbers; None returns `image` as it is.

    Raises:
        UserError: for an unknown or doubled modality, another number of channels, or all modalities in another order
            than the channels', where it is not known which order the image has.
    """
    if available is None:
        return image
    names = [available] if isinstance(available, str | int) else list(available)
    modalities.subset(names)
    channels = [modalities.channel(name) for name in names]
    if len(set(channels)) < len(channels):
        raise UserError(f"A modality is named twice in available = {names}.")
    if image.ndim != 4 or len(image) not in (len(modalities), len(channels)):
        raise UserError(
            f"With available = {names} an image has either the shape ({len(modalities)}, X, Y, Z), all channels "
            f"({', '.join(modalities)}), or ({len(channels)}, X, Y, Z), those named; this one has {image.shape}."
        )
    if len(channels) == len(modalities) and channels != sorted(channels):
        raise UserError(
            f"available = {names} names every modality in another order than the channels'. Give them, and the image, "
            f"in the order {', '.join(modalities)}, or leave 'available' out."
        )
    scattered = np.zeros((len(modalities), *image.shape[1:]), dtype=image.dtype)
    scattered[channels] = image[channels] if len(image) == len(modalities) else image
    return scattered
