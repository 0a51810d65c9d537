"""What keeps an accuracy benchmark from starting or makes its runs incomparable, found before anything is trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.cli.model_arguments import select_device
from nnunetv2_unimrseg.cli.train import FOLDS, check_preprocessed
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import find_dataset, inherited_value, nnunet_folder, read_configuration, read_plans
from nnunetv2_unimrseg.utils.files import read_json

from .training import Run, planned_passes

UNEVEN = 0.05
"""Share of the budget by which a run may miss it without a remark."""


def find_planned_dataset(args: argparse.Namespace) -> str:
    """Return the name of the dataset whose number or name is given.

    Raises:
        UserError: when its images, plans, configuration, preprocessed cases or folds are not there, or the device.
    """
    dataset = find_dataset(args.d, "nnUNet_raw", "nnUNet_preprocessed")
    plans, _ = read_configuration(dataset, args.p, args.c)
    check_preprocessed(dataset, str(inherited_value(plans, args.c, "data_identifier")), args.c, args.p)
    splits = nnunet_folder("nnUNet_preprocessed") / dataset / "splits_final.json"
    folds = len(json.loads(splits.read_text())) if splits.is_file() else FOLDS
    if unknown := [fold for fold in args.f if not 0 <= fold < folds]:
        raise UserError(f"There is no fold {', '.join(map(str, unknown))}: {dataset} has the folds 0 to {folds - 1}.")
    select_device(args.device)
    return dataset


def refuse_other_settings(runs: Iterable[Run], output: Path) -> None:
    """Check that results that are there are those that the runs would give.

    Raises:
        UserError: at the first one with other trainings (settings, epochs) or of plans that have changed since.
    """
    for run in runs:
        path, last = run.result(output), run.chain[-1]
        if not path.is_file():
            continue
        record = read_json(path)
        plans = read_plans(last.dataset, last.plans)
        wanted = {key: inherited_value(plans, last.configuration, key) for key in ("patch_size", "batch_size")}
        found = {key: record[key] for key in wanted}
        for task in run.chain:
            wanted |= _named(task.section, task.settings[task.section], task.epochs)
        for training in record["trainings"]:
            found |= _named(training["section"], training["settings"], training["epochs"])
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise UserError(
                    f"{path} is the result of other settings: {name} was {found.get(name)}, and is "
                    f"{wanted.get(name)} now. Choose another folder with -o, or remove the file to train it anew."
                )


def _named(section: str, settings: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    return {**{f"{section}.{name}": value for name, value in settings.items()}, f"{section}: epochs": epochs}


def uneven_budgets(runs: Iterable[Run]) -> list[str]:
    """Return a remark for each variant whose whole steps cannot be had for the budget."""
    remarks = []
    for run in {run.variant: run for run in runs}.values():  # folds and seeds take the same
        passes = sum(map(planned_passes, run.chain))
        if abs(passes / run.budget - 1) > UNEVEN:
            remarks.append(
                f"{run.variant} takes {passes:g} passes instead of {run.budget}, because every epoch has the same "
                "number of whole steps: comparing it is not fair. Give more --passes or fewer --epochs."
            )
    return remarks
