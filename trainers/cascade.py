"""Input of a cascade's second configuration: the segmentations of its first, as stage 3 made them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import dataset_id, result_folder
from nnunetv2_unimrseg.stages import STAGES, TRAINER_OF_SECTION


def previous_segmentations(dataset: str, plans: str, previous: str, configuration: str) -> Path:
    """Return where stage 3 of `previous` ("3d_lowres") wrote, when it ended, what `configuration` gets as input.

    nnU-Net looks below the trainer's own name; of the three stages only the last one's segmentations are final, and
    stage 1 makes none.
    """
    model = result_folder(dataset, TRAINER_OF_SECTION[STAGES[-1]], plans, previous)
    return model / "predicted_next_stage" / configuration


def check_previous_segmentations(
    folder: Path, cases: Iterable[str], dataset: str, plans: str, previous: str, configuration: str
) -> None:
    """Check that the first configuration has segmented all cases.

    Raises:
        UserError: when one is not in `folder`.
    """
    there = {path.stem for path in folder.glob("*")}
    absent = sorted(set(cases) - there)
    if absent:
        raise UserError(
            f"{configuration} gets the segmentations of {previous} as input. Those of {len(absent)} cases, such as "
            f"{absent[0]}, are not in {folder}. With {configuration} preprocessed, train {previous} in every fold, "
            f"whose end validations write them:\n  unimrseg train {dataset_id(dataset)} {previous} FOLD -p {plans}"
        )
