"""What is written once all of a case is reconstructed: its scores, its entry in modalities.json, its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nnunetv2_unimrseg.data.cases import report_of, write_report
from nnunetv2_unimrseg.errors import UserError, in_one_line
from nnunetv2_unimrseg.method.reconstruction_metrics import FIGURES
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.reconstruction.montage import Column, write_montage
from nnunetv2_unimrseg.reconstruction.planning import Case
from nnunetv2_unimrseg.reconstruction.results import add_scores
from nnunetv2_unimrseg.reconstruction.work import Output


def close_case(
    case: Case, outputs: Sequence[Output], modalities: Modalities, folder: Path, settings: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Write what is written once a case, the picture last, and print a line.

    Args:
        case: the case.
        outputs: one for each of its subsets.
        modalities: the dataset's.
        folder: to write to.
        settings: for `summary.json`.

    Returns:
        The case's rows of the table, and what failed: `case`, `subset`, `reason`.
    """
    outputs = sorted(outputs, key=lambda output: case.subsets.index(output.subset))
    rows = [row for output in outputs for row in output.rows]
    failures = [
        {"case": case.name, "subset": modalities.describe(output.subset), "reason": output.problem}
        for output in outputs
        if output.problem
    ]
    try:
        scored = [row for row in rows if not math.isnan(row["L1"])]
        if scored:
            add_scores(folder, scored, settings)
        if not failures:
            write_report(folder, {case.name: report_of(case.available, modalities)})
            _write_picture(case, outputs, modalities)
    except UserError:  # nothing can be written; that would be so for the other cases too
        raise
    except Exception as error:
        failures.append(
            {"case": case.name, "subset": modalities.describe(case.available), "reason": in_one_line(error)}
        )
    tqdm.write(_line(case, rows, scored, failures))
    return rows, failures


def _line(case: Case, rows: Sequence[Mapping], scored: Sequence[Mapping], failures: Sequence[Mapping]) -> str:
    if failures:
        return f"{case.name}: failed: {failures[0]['reason']}"
    text = f"{case.name}: nothing missing, scored with {len(case.subsets)} missing patterns"
    if case.targets:
        text = f"{case.name}: {', '.join(row['modality'] for row in rows)} made from {rows[0]['available']}"
    means = {name: np.mean([row[name] for row in scored]) for name in FIGURES if scored}
    return text + "".join(f", {name} {value:.3g}" for name, value in means.items())


def _write_picture(case: Case, outputs: Sequence[Output], modalities: Modalities) -> None:
    """Show each missing modality; where nothing is missing, each modality as made from all the others."""
    opened = outputs[0].opened
    shown = [output for output in outputs if case.targets or len(output.slices) == 1]
    made = {channel: (output, image) for output in shown for channel, image in output.slices.items()}
    columns = {}
    for channel, name in enumerate(modalities):
        real, note, synthetic, caption = None, "", None, ""
        if case.targets and case.available[channel]:
            real, note = opened.image[channel, opened.shown], "input"
        elif opened.truth is not None and np.isfinite(opened.truth[channel, opened.shown]).all():
            real, note = opened.truth[channel, opened.shown], "truth"
        if channel in made:
            output, synthetic = made[channel]
            caption = _caption(next(row for row in output.rows if row["modality"] == name))
        columns[name] = Column(real, note, synthetic, caption)
    what = f"made from {modalities.describe(case.available)}" if case.targets else "each made from all others"
    write_montage(case.montage, columns, f"{case.name}: synthetic images, {what}", opened.properties["spacing"][1:])


def _caption(row: Mapping[str, Any]) -> str:
    if math.isnan(row["L1"]):
        return ""
    return f"L1 {row['L1']:.3f}, PSNR {row['PSNR']:.1f} dB, SSIM {row['SSIM']:.3f}"
