"""Tell what is installed, whether nnU-Net finds the trainers, and which stages are trained.

With -d and -c also the stages of that dataset and configuration, and every hyper-parameter in force.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.discovery import VARIABLE
from nnunetv2_unimrseg.nnunet.paths import VARIABLES, find_dataset, fold_name, read_configuration, result_folder
from nnunetv2_unimrseg.nnunet.training_state import training_state
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.versions import package_versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg info`."""
    parser.add_argument("-d", metavar="DATASET", help="number or name of a dataset")
    parser.add_argument("-c", metavar="CONFIGURATION", help="configuration, such as 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: nnUNetPlans)")
    parser.add_argument(
        "-f", nargs="+", default=["0", "1", "2", "3", "4"], metavar="FOLD", help="folds (default: 0 1 2 3 4)"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> None:
    """Print what is known; creates and changes nothing."""
    if (args.d is None) != (args.c is None):
        raise UserError("Give both -d DATASET and -c CONFIGURATION, or neither.")
    args.f = [fold_name(text) for text in args.f]
    found, problems = _trainers_found()
    facts: dict[str, Any] = {
        "versions": package_versions("nnunetv2", "torch", "dynamic-network-architectures"),
        "devices": _devices(),
        VARIABLE: os.environ.get(VARIABLE),
        "trainers_found": found,
        "trainer_problems": problems,
        "folders": {variable: _folder(variable) for variable in VARIABLES},
    }
    if args.d is not None:
        facts["model"] = _model(args)
    print(json.dumps(facts, indent=4) if args.json else _as_text(facts))


def _devices() -> dict[str, bool]:
    import torch

    from nnunetv2_unimrseg.utils.hardware import cpu_has_native_bfloat16

    return {"cuda": torch.cuda.is_available(), "cpu_native_bfloat16": cpu_has_native_bfloat16()}


def _trainers_found() -> tuple[dict[str, bool], list[str]]:
    """Look the trainers up as nnU-Net's commands do; also return what went wrong in folders it searched."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    found: dict[str, bool] = {}
    problems: dict[str, None] = {}
    for trainer in TRAINER_OF_SECTION.values():
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                found[trainer] = recursive_find_trainer_class_by_name(trainer).__name__ == trainer
            except Exception as error:  # whatever a module in nnUNet_extTrainer raises when it is imported
                found[trainer] = False
                if os.environ.get(VARIABLE) and "Could not find requested" not in str(error):
                    problems[f"{type(error).__name__}: {error}"] = None
    return found, list(problems)


def _folder(variable: str) -> dict[str, Any]:
    path = os.environ.get(variable)
    return {"path": path, "exists": Path(path).is_dir() if path else False}


def _model(args: argparse.Namespace) -> dict[str, Any]:
    dataset = find_dataset(args.d, "nnUNet_preprocessed")
    plans, config = read_configuration(dataset, args.p, args.c)
    from nnunetv2_unimrseg.config import PLANS_KEY
    from nnunetv2_unimrseg.data.case_table import count_cases, read_case_table
    from nnunetv2_unimrseg.nnunet.modalities_in_plans import MODALITIES_KEY
    from nnunetv2_unimrseg.nnunet.paths import inherited_value, nnunet_folder

    table = read_case_table(nnunet_folder("nnUNet_preprocessed") / dataset)
    schemes = inherited_value(plans, args.c, "normalization_schemes") or ()
    groups = inherited_value(plans, args.c, MODALITIES_KEY)

    trained = {}
    if os.environ.get("nnUNet_results"):  # noqa: SIM112 (nnU-Net's name)
        for section, trainer in TRAINER_OF_SECTION.items():
            folder = result_folder(dataset, trainer, args.p, args.c)
            trained[section] = {fold: training_state(folder / f"fold_{fold}").value for fold in args.f}
    return {
        "dataset": dataset,
        "configuration": args.c,
        "plans": args.p,
        "channels_of_modalities": groups,
        "training_cases": count_cases(list(table.values()), len(groups or schemes)) if table else None,
        "trained": trained,
        "settings": config.to_dict(),
        "set_in_plans": inherited_value(plans, args.c, PLANS_KEY) or {},
    }


def _as_text(facts: dict[str, Any]) -> str:
    lines = [f"{name} {number}" for name, number in facts["versions"].items()]
    devices = facts["devices"]
    lines.append(f"CUDA: {_yes(devices['cuda'])}; native bfloat16 on the CPU: {_yes(devices['cpu_native_bfloat16'])}")
    lines += ["", "Does nnU-Net find the trainers?"]
    lines += [f"  {trainer}: {_yes(found)}" for trainer, found in facts["trainers_found"].items()]
    if not all(facts["trainers_found"].values()):
        lines.append(f'  {VARIABLE} is {facts[VARIABLE] or "not set"}. Run: eval "$(unimrseg env)"')
        lines += [f"  {problem}" for problem in facts["trainer_problems"]]
    lines += ["", "nnU-Net's folders"]
    for variable, folder in facts["folders"].items():
        state = "not set" if not folder["path"] else "" if folder["exists"] else " (does not exist)"
        lines.append(f"  {variable}: {folder['path'] or ''}{state}")
    if "model" in facts:
        lines += ["", *_model_lines(facts["model"])]
    return "\n".join(lines)


def _model_lines(model: dict[str, Any]) -> list[str]:
    lines = [f"{model['dataset']}, {model['configuration']}, {model['plans']}: trained?"]
    for section, folds in model["trained"].items():
        states = ", ".join(f"fold {fold}: {state}" for fold, state in folds.items())
        lines.append(f"  {TRAINER_OF_SECTION[section]}: {states}")
    if not model["trained"]:
        lines.append("  nnUNet_results is not set, so it is not known")
    if cases := model["training_cases"]:
        lines += [
            "",
            f"{cases['cases']} training cases: {cases['labelled']} labelled, {cases['incomplete']} incomplete",
        ]
    if groups := model["channels_of_modalities"]:
        lines += ["", "Modalities", *(f"  {name}: channels {', '.join(map(str, of))}" for name, of in groups.items())]
    lines += ["", "Settings (* set in the plans; the others are defaults)"]
    for section, values in model["settings"].items():
        for name, value in values.items():
            marker = "*" if name in model["set_in_plans"].get(section, {}) else " "
            lines.append(f"  {marker} {section}.{name} = {json.dumps(value)}")
    return lines


def _yes(value: bool) -> str:
    return "yes" if value else "no"
