"""Writes scores, modalities.json and the picture of a case that was reconstructed from each of its subsets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_unimrseg.data.cases import describe_availability, write_availability
from nnunetv2_unimrseg.errors import UserError, in_one_line
from nnunetv2_unimrseg.method.reconstruction_metrics import METRICS
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.reconstruction.case_reconstructor import FailedCase, ReconstructedCase
from nnunetv2_unimrseg.reconstruction.montage import Column, write_montage
from nnunetv2_unimrseg.reconstruction.planning import Case
from nnunetv2_unimrseg.reconstruction.reconstruction_folder import add_scores

Row = dict[str, Any]
"""A row of the table that `reconstruct` returns."""


def write_case_results(
    case: Case,
    results: Sequence[ReconstructedCase | FailedCase],
    modalities: Modalities,
    folder: Path,
    settings: Mapping[str, Any],
) -> tuple[list[Row], list[dict[str, str]]]:
    """Write scores, the entry in `modalities.json` and, last, the picture of a case; print a line.

    Args:
        case: the case.
        results: one for each of its subsets.
        modalities: the dataset's.
        folder: to write to.
        settings: for `summary.json`.

    Returns:
        The case's rows of the table, and what failed: `case`, `subset`, `reason`.

    Raises:
        UserError: when a file cannot be written.
    """
    results = sorted(results, key=lambda result: case.subsets.index(result.subset))
    made = [result for result in results if isinstance(result, ReconstructedCase)]
    failed = {result.subset: result.reason for result in results if isinstance(result, FailedCase)}
    rows = [row for result in made for row in result.rows]
    scored = [row for row in rows if not math.isnan(row["L1"])]
    try:
        if scored:
            add_scores(folder, scored, settings)
        if not failed:
            write_availability(folder, {case.name: describe_availability(case.available, modalities)})
            _write_picture(case, made, modalities)
    except UserError:  # a full disk or the like stops the other cases too
        raise
    except Exception as error:
        failed[case.available] = in_one_line(error)
    failures = [
        {"case": case.name, "subset": modalities.describe(subset), "reason": reason}
        for subset, reason in failed.items()
    ]
    tqdm.write(f"{case.name}: failed: {failures[0]['reason']}" if failures else _success_line(case, rows, scored))
    return rows, failures


def _success_line(case: Case, rows: Sequence[Row], scored: Sequence[Row]) -> str:
    text = f"{case.name}: nothing missing, scored with {len(case.subsets)} missing patterns"
    if case.targets:
        text = f"{case.name}: {', '.join(row['modality'] for row in rows)} made from {rows[0]['available']}"
    means = {name: np.mean([row[name] for row in scored]) for name in METRICS if scored}
    return text + "".join(f", {name} {value:.3g}" for name, value in means.items())


def _write_picture(case: Case, results: Sequence[ReconstructedCase], modalities: Modalities) -> None:
    """Show each missing modality; where nothing is missing, each modality as made from all the others."""
    loaded = results[0].loaded
    shown = [result for result in results if case.targets or len(result.slices) == 1]
    made = {channel: (result, image) for result in shown for channel, image in result.slices.items()}
    columns, available = {}, modalities.expand(case.available)
    for channel, name in enumerate(modalities.channel_names):
        real, note, synthetic, caption = None, "", None, ""
        if case.targets and available[channel]:
            real, note = loaded.image[channel, loaded.slice_index], "input"
        elif loaded.truth is not None and np.isfinite(loaded.truth[channel, loaded.slice_index]).all():
            real, note = loaded.truth[channel, loaded.slice_index], "truth"
        if channel in made:
            result, synthetic = made[channel]
            caption = _caption(next(row for row in result.rows if row["modality"] == name))
        columns[name] = Column(real, note, synthetic, caption)
    what = f"made from {modalities.describe(case.available)}" if case.targets else "each made from all others"
    write_montage(case.montage, columns, f"{case.name}: synthetic images, {what}", loaded.properties["spacing"][1:])


def _caption(row: Row) -> str:
    if math.isnan(row["L1"]):
        return ""
    return f"L1 {row['L1']:.3f}, PSNR {row['PSNR']:.1f} dB, SSIM {row['SSIM']:.3f}"
