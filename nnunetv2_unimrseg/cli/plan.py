"""Plan and preprocess a dataset: fingerprint, UniMRSegPlanner, preprocessing.

Like nnUNetv2_plan_and_preprocess, with plans whose memory target holds for all three stages. The preprocessed data
gets folders of its own; those of other plans are not touched.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.data.training_cases import check_raw_dataset
from nnunetv2_unimrseg.errors import UserError, nearest
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.paths import (
    dataset_id,
    find_dataset,
    inherited_value,
    nnunet_folder,
    preprocessing_command,
    read_plans,
    require_folders,
)
from nnunetv2_unimrseg.utils.files import read_json
from nnunetv2_unimrseg.utils.hardware import device_option
from nnunetv2_unimrseg.utils.processes import interruptible

PLANNED_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg plan`."""
    parser.add_argument("-d", nargs="+", required=True, metavar="DATASET", help="numbers or names of datasets")
    parser.add_argument(
        "-gpu_memory_target",
        type=float,
        default=None,
        metavar="GB",
        help="memory that the costliest of the three stages may take (default: 24)",
    )
    parser.add_argument(
        "-c",
        nargs="+",
        default=None,
        metavar="CONFIGURATION",
        help="configurations to preprocess (default: those planned of 2d 3d_fullres 3d_lowres)",
    )
    parser.add_argument(
        "--base-features",
        type=int,
        default=None,
        metavar="N",
        help="features of the first stage, 1 to 32 (default: 32): a narrower network of the same patch, batch and "
        "topology, for small machines",
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        type=float,
        nargs=3,
        default=None,
        metavar="MM",
        help="target spacing of 3d_fullres and of configurations planned from it, in the order of the arrays' axes",
    )
    parser.add_argument(
        "-np",
        type=int,
        default=None,
        metavar="N",
        help="processes (default: as nnU-Net, 8, and 4 for 3d_fullres; nnUNet_def_n_proc lowers it)",
    )
    parser.add_argument(
        "--verify_dataset_integrity", action="store_true", help="let nnU-Net read and check every training case first"
    )
    parser.add_argument(
        "--clean", action="store_true", help="make the fingerprint anew (needed when the dataset has changed)"
    )
    parser.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    parser.add_argument(
        "-overwrite_plans_name", default=None, metavar="NAME", help="name of the plans (default: nnUNetUniMRSegPlans)"
    )


def run(args: argparse.Namespace) -> None:
    """Plan and preprocess every dataset of `args.d`; all of them are checked before the first is computed."""
    require_folders("nnUNet_raw", "nnUNet_preprocessed")
    if args.np is not None and args.np < 1:
        raise UserError(f"-np must be at least 1, found {args.np}.")
    spacing = args.overwrite_target_spacing
    if spacing and not all(0 < value < math.inf for value in spacing):
        raise UserError(f"-overwrite_target_spacing must be three positive numbers of mm, found {spacing}.")
    datasets = list(dict.fromkeys(find_dataset(dataset, "nnUNet_raw") for dataset in args.d))
    num_cases = {dataset: check_raw_dataset(nnunet_folder("nnUNet_raw") / dataset) for dataset in datasets}

    from nnunetv2_unimrseg.planners.planner import (
        DEFAULT_BASE_FEATURES,
        DEFAULT_GPU_MEMORY_TARGET,
        PLANS_NAME,
        check_request,
        earlier_plans,
        settings_to_keep,
    )

    target = DEFAULT_GPU_MEMORY_TARGET if args.gpu_memory_target is None else args.gpu_memory_target
    base_features = DEFAULT_BASE_FEATURES if args.base_features is None else args.base_features
    plans_name = args.overwrite_plans_name or PLANS_NAME
    check_request(target, base_features, plans_name)
    for dataset in datasets:
        kept = settings_to_keep(earlier_plans(dataset, plans_name))
        _check_known(args.c, {*PLANNED_CONFIGURATIONS, "3d_cascade_fullres", *kept})
    for dataset in datasets:
        _make_fingerprint(dataset, num_cases[dataset], args)
        plans = _make_plans(dataset, target, base_features, plans_name, spacing)
        configurations = configurations_to_preprocess(plans, args.c)
        if args.no_pp:
            print(f"Preprocessing is left out; later: {preprocessing_command(dataset, plans_name, configurations)}")
        else:
            _preprocess(dataset, plans_name, configurations, args.np)
        print(_next_command(dataset, plans_name, configurations))


def _check_known(requested: Iterable[str] | None, known: Iterable[str]) -> None:
    for name in requested or ():
        if name not in known:
            raise UserError(
                f"Unknown configuration '{name}'.{nearest(name, known)} Known are {', '.join(sorted(known))}."
            )


def _make_fingerprint(dataset: str, num_cases: int, args: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset

    path = nnunet_folder("nnUNet_preprocessed") / dataset / "dataset_fingerprint.json"
    if path.is_file() and not args.clean:
        _check_fingerprint(path, num_cases)
        print(f"The fingerprint {path} is reused; --clean makes it anew.")
    extract = functools.partial(
        extract_fingerprint_dataset,
        dataset_id(dataset),
        num_processes=args.np or default_num_processes,
        check_dataset_integrity=args.verify_dataset_integrity,
        clean=args.clean,
        verbose=False,
    )
    try:
        interruptible(extract)
    except (AssertionError, RuntimeError, OSError) as error:
        more = "" if args.verify_dataset_integrity else " --verify_dataset_integrity names every bad file."
        raise UserError(f"nnU-Net refuses the training data of {dataset}: {error}{more}") from error
    _check_intensities(path)


def _check_intensities(fingerprint: Path) -> None:
    """Check that the intensities of the foreground, with which CT is normalised, are numbers."""
    channels = read_json(fingerprint)["foreground_intensity_properties_per_channel"]
    unusable = [channel for channel, values in channels.items() if not all(map(math.isfinite, values.values()))]
    if unusable:
        raise UserError(
            f"The intensities of channel {', '.join(unusable)} inside the labels are so large that their mean or "
            f"standard deviation is no number (see {fingerprint}). Look for images with wrong values there, replace "
            "them, and run the command again with --clean."
        )


def _check_fingerprint(path: Path, num_cases: int) -> None:
    try:
        described = len(read_json(path)["spacings"])
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}). Run the command again with --clean.") from None
    if described != num_cases:
        print(
            f"WARNING: {path} describes {described} training cases, but the dataset has {num_cases} now. "
            "Run the command again with --clean if the dataset has changed."
        )


def _make_plans(
    dataset: str, target: float, base_features: int, plans_name: str, spacing: Sequence[float] | None
) -> dict[str, Any]:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    from nnunetv2_unimrseg.planners.planner import UniMRSegPlanner

    plans: dict[str, Any] = plan_experiment_dataset(
        dataset_id(dataset),
        experiment_planner_class=functools.partial(UniMRSegPlanner, base_features=base_features),
        gpu_memory_target_in_gb=target,
        overwrite_target_spacing=spacing,
        overwrite_plans_name=plans_name,
    )[0]
    return plans


def configurations_to_preprocess(plans: Mapping[str, Any], requested: Iterable[str] | None) -> list[str]:
    """Return the configurations whose data must be made, each preprocessed folder once.

    Args:
        plans: the plans, as nnU-Net writes them.
        requested: what the user asks for; None means all that nnU-Net preprocesses by default.

    Raises:
        UserError: when a requested configuration was not planned.
    """
    planned = plans["configurations"]
    absent = [name for name in requested or () if name not in planned]
    if absent:
        raise UserError(
            f"The configuration {', '.join(absent)} was not planned for this dataset (3d_lowres exists only for large "
            f"images, 3D ones only for volumes). There are: {', '.join(planned)}. Choose with -c; "
            "nothing was preprocessed."
        )
    wanted = requested or [name for name in PLANNED_CONFIGURATIONS if name in planned]
    by_folder = {inherited_value(plans, name, "data_identifier"): name for name in reversed(list(wanted))}
    return [name for name in dict.fromkeys(wanted) if name in by_folder.values()]


def _preprocess(dataset: str, plans_name: str, configurations: list[str], num_processes: int | None) -> None:
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess_dataset

    most = {"3d_fullres": 4}
    processes = [
        num_processes or min(default_num_processes, most.get(name, default_num_processes)) for name in configurations
    ]
    preprocess = functools.partial(preprocess_dataset, dataset_id(dataset), plans_name, configurations, processes)
    try:
        interruptible(preprocess)
    except OSError as error:
        raise UserError(
            f"The preprocessed data of {dataset} cannot be written: {error}. Run the command again when it can."
        ) from error
    check_preprocessed(dataset, plans_name, configurations)


def check_preprocessed(dataset: str, plans_name: str, configurations: Sequence[str]) -> None:
    """Read back what was written, so that no training starts from a damaged file."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_unimrseg.data.preprocessed_cases import check_preprocessed_cases

    base = nnunet_folder("nnUNet_preprocessed") / dataset
    plans_manager, dataset_json = PlansManager(read_plans(dataset, plans_name)), read_json(base / "dataset.json")
    for name in configurations:
        folder = base / plans_manager.get_configuration(name).data_identifier
        check_preprocessed_cases(
            folder,
            infer_dataset_class(str(folder)),
            plans_manager.get_label_manager(dataset_json),
            Modalities.from_dataset_json(dataset_json),
        )


def _next_command(dataset: str, plans_name: str, configurations: list[str]) -> str:
    preferred = "3d_fullres" if "3d_fullres" in configurations else configurations[0]
    return f"Train the three stages with: unimrseg train {dataset} {preferred} 0 -p {plans_name}{device_option()}"
