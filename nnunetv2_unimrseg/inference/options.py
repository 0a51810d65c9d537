"""Options for applying a trained model to many cases, to evaluate it or to reconstruct."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from nnunetv2_unimrseg.errors import UserError

Predictor = TypeVar("Predictor")


@dataclass(frozen=True)
class InferenceOptions:
    """Options that evaluating and reconstructing share, under nnU-Net's names where it has them.

    Attributes:
        checkpoint: file to load from each fold.
        use_mirroring: average over mirrored images too, as nnU-Net does by default.
        step_size: step of the sliding window, as a share of its size, above 0, at most 1.
        device: where to compute.
        perform_everything_on_device: keep the results of the sliding window on the device.
        num_threads_preprocessing: threads that prepare cases while the network computes; 0 for none.
        num_threads_export: threads that resample, score and write results meanwhile; 0 for none.
        num_parts: do only every `num_parts`-th case, to divide the cases among several calls.
        part_id: the number of the first case to do, from 0 to `num_parts` - 1.
        show_progress: show progress bars.

    Raises:
        UserError: when a number is out of range.
    """

    checkpoint: str = "checkpoint_final.pth"
    use_mirroring: bool = True
    step_size: float = 0.5
    device: torch.device | str = "cuda"
    perform_everything_on_device: bool = True
    num_threads_preprocessing: int = 2
    num_threads_export: int = 2
    num_parts: int = 1
    part_id: int = 0
    show_progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", torch.device(self.device))
        if not 0 < self.step_size <= 1:
            raise UserError(f"The step size must be larger than 0 and at most 1; it is {self.step_size}.")
        threads = self.num_threads_preprocessing, self.num_threads_export
        check_numbers(self.num_parts, self.part_id, threads, "threads")

    def create(self, predictor: Callable[..., Predictor]) -> Predictor:
        """Return an instance of a class of nnU-Net predictors with these options; it has no model yet."""
        with contextlib.redirect_stdout(io.StringIO()):  # on a CPU, nnU-Net warns of perform_everything_on_device
            return predictor(
                tile_step_size=self.step_size,
                use_mirroring=self.use_mirroring,
                perform_everything_on_device=self.perform_everything_on_device,
                device=self.device,
                allow_tqdm=False,
            )

    @property
    def part(self) -> slice:
        """Which of the cases this call does."""
        return slice(self.part_id, None, self.num_parts)


def check_numbers(num_parts: int, part_id: int, workers: tuple[int, int], unit: str) -> None:
    """Check which part of the cases is to be done, and with how many processes or threads (`unit`).

    Raises:
        UserError: when one of the numbers is impossible.
    """
    if not 0 <= part_id < num_parts:
        raise UserError(f"part_id must be from 0 to num_parts - 1 = {num_parts - 1}; it is {part_id}.")
    if min(workers) < 0:
        raise UserError(
            f"The numbers of {unit} for preprocessing (npp) and for export (nps) must be at least 0; they are "
            f"{workers[0]} and {workers[1]}."
        )
