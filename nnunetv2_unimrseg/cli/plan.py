"""Plan and preprocess a dataset: fingerprint, UniMRSegPlanner, preprocessing.

Like nnUNetv2_plan_and_preprocess, with plans whose memory target holds for all three stages. Training cases may lack
modalities and labels. The preprocessed data gets folders of its own; those of other plans are not touched.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nnunetv2_unimrseg.data.case_table import describe_case_table, write_case_table
from nnunetv2_unimrseg.data.training_cases import RawDataset, check_raw_dataset
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
    parser.add_argument(
        "--labelled-only", action="store_true", help="refuse training cases without a label, as nnU-Net does"
    )
    parser.add_argument(
        "--complete-only", action="store_true", help="refuse training cases that lack a modality, as nnU-Net does"
    )
    parser.add_argument("--no_pp", action="store_true", help="plan only, do not preprocess")
    parser.add_argument(
        "--preprocess-only",
        action="store_true",
        help="preprocess with plans that are there, also those of nnU-Net's planners, as nnUNetv2_preprocess does",
    )
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
    if args.preprocess_only:
        _refuse_planning_flags(args)
    datasets = list(dict.fromkeys(find_dataset(dataset, "nnUNet_raw") for dataset in args.d))
    raw = {dataset: _checked_dataset(dataset, args) for dataset in datasets}
    if args.preprocess_only:
        _preprocess_all(raw, args)
    else:
        _plan_all(raw, args)


def _refuse_planning_flags(args: argparse.Namespace) -> None:
    flags = {
        "-gpu_memory_target": args.gpu_memory_target is not None,
        "--base-features": args.base_features is not None,
        "-overwrite_target_spacing": args.overwrite_target_spacing is not None,
        "--clean": args.clean,
        "--no_pp": args.no_pp,
        "--verify_dataset_integrity": args.verify_dataset_integrity,
    }
    if given := [flag for flag, is_given in flags.items() if is_given]:
        raise UserError(f"--preprocess-only takes the plans as they are; {', '.join(given)} cannot be given with it.")


def _checked_dataset(dataset: str, args: argparse.Namespace) -> RawDataset:
    raw = check_raw_dataset(
        nnunet_folder("nnUNet_raw") / dataset, labelled_only=args.labelled_only, complete_only=args.complete_only
    )
    if args.verify_dataset_integrity and not raw.is_complete:
        raise UserError(
            f"--verify_dataset_integrity is nnU-Net's check, which refuses missing modalities and labels, and some are "
            f"missing in {dataset}. Leave it out: every file of every case has been read and checked."
        )
    return raw


def _preprocess_all(raw: Mapping[str, RawDataset], args: argparse.Namespace) -> None:
    from nnunetv2_unimrseg.planners.planner import PLANS_NAME

    plans_name = args.overwrite_plans_name or PLANS_NAME
    wanted = {
        dataset: configurations_to_preprocess(read_plans(dataset, plans_name, "-overwrite_plans_name"), args.c)
        for dataset in raw
    }
    for dataset, configurations in wanted.items():
        _preprocess(dataset, plans_name, configurations, raw[dataset], args.np)


def _plan_all(raw: Mapping[str, RawDataset], args: argparse.Namespace) -> None:
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
    for dataset in raw:
        kept = settings_to_keep(earlier_plans(dataset, plans_name))
        _check_known(args.c, {*PLANNED_CONFIGURATIONS, "3d_cascade_fullres", *kept})
    for dataset, of_dataset in raw.items():
        _make_fingerprint(dataset, of_dataset, args)
        plans = _make_plans(dataset, target, base_features, plans_name, args.overwrite_target_spacing)
        configurations = configurations_to_preprocess(plans, args.c)
        if args.no_pp:
            write_case_table(nnunet_folder("nnUNet_preprocessed") / dataset, of_dataset.table)
            print(f"Preprocessing is left out; later: {preprocessing_command(dataset, plans_name, configurations)}")
        else:
            _preprocess(dataset, plans_name, configurations, of_dataset, args.np)
        print(_next_command(dataset, plans_name, configurations))


def _check_known(requested: Iterable[str] | None, known: Iterable[str]) -> None:
    for name in requested or ():
        if name not in known:
            raise UserError(
                f"Unknown configuration '{name}'.{nearest(name, known)} Known are {', '.join(sorted(known))}."
            )


def _make_fingerprint(dataset: str, raw: RawDataset, args: argparse.Namespace) -> None:
    from nnunetv2.configuration import default_num_processes
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    from nnunetv2_unimrseg.planners.fingerprint import FINGERPRINT_NAME, check_fingerprint, write_fingerprint

    path = nnunet_folder("nnUNet_preprocessed") / dataset / FINGERPRINT_NAME
    num_processes = args.np or default_num_processes
    if args.verify_dataset_integrity:
        folder = str(nnunet_folder("nnUNet_raw") / dataset)
        try:
            interruptible(functools.partial(verify_dataset_integrity, folder, num_processes))
        except (AssertionError, RuntimeError, OSError) as error:
            raise UserError(f"nnU-Net refuses the training data of {dataset}: {error}") from error
    if path.is_file() and not args.clean:
        check_fingerprint(path, raw)
        print(f"The fingerprint {path} is reused; --clean makes it anew.")
        return
    try:
        write_fingerprint(path, raw, num_processes)
    except OSError as error:
        raise UserError(
            f"The fingerprint {path} cannot be written: {error}. Run the command again when it can."
        ) from error


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


def _preprocess(
    dataset: str, plans_name: str, configurations: Sequence[str], raw: RawDataset, num_processes: int | None
) -> None:
    from nnunetv2.configuration import default_num_processes

    from nnunetv2_unimrseg.planners.preprocess import preprocess_dataset

    most = {"3d_fullres": 4}
    processes = [
        num_processes or min(default_num_processes, most.get(name, default_num_processes)) for name in configurations
    ]
    write_case_table(nnunet_folder("nnUNet_preprocessed") / dataset, raw.table)
    try:
        preprocess_dataset(dataset, plans_name, configurations, processes, raw)
    except OSError as error:
        raise UserError(
            f"The preprocessed data of {dataset} cannot be written: {error}. Run the command again when it can."
        ) from error
    check_preprocessed(dataset, plans_name, configurations)
    if not raw.is_complete:
        print(describe_case_table(list(raw.table.values()), raw.modalities))


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
    device = device_option()
    command = f"Train the three stages with: unimrseg train {dataset} {preferred} 0 -p {plans_name}{device}"
    if not device:
        return command
    short = f"unimrseg configure -d {dataset} -c {preferred} -p {plans_name} --recipe short"
    return f"{command}\nThat is a full training, for a GPU. For a first look, shorten it before: {short}"
