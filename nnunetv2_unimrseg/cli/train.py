"""Train the three stages in order with nnU-Net's own training command.

Finished stages are skipped, an unfinished stage is resumed, and a stage that lacks only its end validation is
validated. Where start_from of a stage names a checkpoint, the stages before it are left out.

With --from-checkpoint, a trained nnU-Net of the same plans takes the place of stage 1, and stages 2 and 3 are trained.
With --keep-complete as well, it is kept as it is for complete cases, and only what incomplete ones need is trained
beside it (UniMRSegRetrofitTrainer), in less than a tenth of the time.

With --launcher torchrun, the processes that torchrun started on one or several machines train together. With --launcher
slurm, each stage of each fold becomes a SLURM job, which goes on where it stopped when its time is over.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.cli import launchers
from nnunetv2_unimrseg.cli.configure import write_settings
from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.data.case_table import read_case_table
from nnunetv2_unimrseg.data.splits import FOLDS
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json
from nnunetv2_unimrseg.nnunet.paths import (
    VARIABLES,
    dataset_id,
    find_dataset,
    inherited_value,
    nnunet_folder,
    plans_path,
    preprocessing_command,
    read_configuration,
    require_folders,
    result_folder,
)
from nnunetv2_unimrseg.nnunet.stage_training import StageTraining
from nnunetv2_unimrseg.nnunet.training_state import TrainingState, training_state
from nnunetv2_unimrseg.stages import RETROFIT, SCRATCH, STAGES, TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.files import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg train`: those of nnUNetv2_train that all stages share."""
    parser.add_argument("dataset_name_or_id", help="number or name of the dataset")
    parser.add_argument("configuration", help="configuration, such as 3d_fullres")
    parser.add_argument(
        "fold",
        help="0 to 4, one after another with all-folds; or all, which trains on all cases; for other numbers nnU-Net "
        "draws a random 80:20 split",
    )
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: nnUNetPlans)")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: cuda")
    parser.add_argument("-num_gpus", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--npz", action="store_true", help="keep the probabilities of the end validation")
    parser.add_argument(
        "--from-checkpoint",
        metavar="PATH",
        help="start from this checkpoint of a trained nnU-Net, of the same plans; {fold} in the path stands for the "
        "fold; sets stage2.start_from in the plans, or with --keep-complete retrofit.start_from",
    )
    parser.add_argument(
        "--keep-complete",
        action="store_true",
        help="complete cases are segmented as by the trained nnU-Net, bit for bit (trains UniMRSegRetrofitTrainer)",
    )
    parser.add_argument("--c", action="store_true", help="no effect: unfinished training is always continued")
    launchers.add_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Train what is not finished.

    Raises:
        UserError: before anything starts, when the data, plans or configuration are not there, and for mistakes in the
            dataset's dataset.json.
        SystemExit: with the exit code of a stage that fails; 2 where that has said what the user can mend.
    """
    require_folders(*VARIABLES)
    folds = launchers.fold_names(args.fold)
    dataset = find_dataset(args.dataset_name_or_id, "nnUNet_preprocessed")
    read_dataset_json(nnunet_folder("nnUNet_preprocessed") / dataset / "dataset.json")
    plans, config = read_configuration(dataset, args.p, args.configuration)
    data_identifier = str(inherited_value(plans, args.configuration, "data_identifier"))
    check_preprocessed(dataset, data_identifier, args.configuration, args.p)
    launchers.check(args, int(inherited_value(plans, args.configuration, "batch_size") or 1))
    trainings = []
    for fold in folds:
        args.fold = fold
        trainings += _prepare_fold(dataset, plans, config, args)
    args.fold = " ".join(folds)
    if launchers.launch(dataset, trainings, args):
        print(_next_commands(dataset, args, cascaded="previous_stage" in plans["configurations"][args.configuration]))


def _prepare_fold(
    dataset: str, plans: dict[str, Any], config: UniMRSegConfig, args: argparse.Namespace
) -> list[StageTraining]:
    """Check that the stages of a fold can be trained, and return those that are not finished, in their order."""
    data_identifier = str(inherited_value(plans, args.configuration, "data_identifier"))
    if args.from_checkpoint:
        _check_trainable(dataset, data_identifier, args)
        config = set_start(dataset, plans, args)
    needed = (RETROFIT,) if args.keep_complete else needed_stages(config)
    trainings = [
        StageTraining(
            dataset,
            args.configuration,
            args.p,
            args.fold,
            stage,
            device=args.device,
            num_gpus=args.num_gpus,
            npz=args.npz,
            in_process_group=args.launcher == launchers.TORCHRUN,
        )
        for stage in needed
    ]
    states = [training.state() for training in trainings]
    if states[0] is TrainingState.NONE:
        _check_start(config, needed[0], args)
    if any(state is not TrainingState.FINISHED for state in states):
        _check_trainable(dataset, data_identifier, args)
    for stage in () if args.keep_complete else STAGES[: STAGES.index(needed[0])]:
        print(f"{stage} is not needed: {needed[0]}.start_from is set", flush=True)
    return trainings


def _next_commands(dataset: str, args: argparse.Namespace, *, cascaded: bool) -> str:
    model = f"-d {dataset_id(dataset)} -c {args.configuration} -p {args.p} -f {args.fold}"
    model += "" if args.device == "cuda" else f" -device {args.device}"
    done = "The three stages are trained."
    if args.keep_complete:
        model += f" -tr {TRAINER_OF_SECTION[RETROFIT]}"
        done = "What incomplete cases need is trained; complete ones are segmented as before."
    if cascaded:
        return (
            f"{done} To predict, with the segmentations of the first configuration:\n"
            f"  unimrseg predict {model} -i PATIENTS -o SEGMENTATIONS -prev_stage_predictions FIRST_SEGMENTATIONS"
        )
    return (
        f"{done} What each missing modality costs, and predicting:\n"
        f"  unimrseg evaluate {model}\n  unimrseg predict {model} -i PATIENTS -o SEGMENTATIONS"
    )


def needed_stages(config: UniMRSegConfig) -> tuple[str, ...]:
    """Return the stages to train: all, or from the last one on whose `start_from` names a checkpoint."""
    starts = [index for index, stage in enumerate(STAGES) if getattr(getattr(config, stage), "start_from", "")]
    return STAGES[max(starts, default=0) :]


def check_preprocessed(dataset: str, data_identifier: str, configuration: str, plans_identifier: str) -> None:
    """Check that a dataset has preprocessed cases.

    Raises:
        UserError: when there is none in the folder `data_identifier`.
    """
    folder = nnunet_folder("nnUNet_preprocessed") / dataset / data_identifier
    if not any(folder.glob("*.pkl")):
        raise UserError(
            f"{dataset} is not preprocessed for {configuration} of {plans_identifier}: there are no cases in {folder}. "
            f"Run: {preprocessing_command(dataset, plans_identifier, [configuration])}"
        )


def check_folds(dataset_folder: Path, data_identifier: str, fold: str) -> None:
    """Check that nnU-Net can divide the preprocessed cases into folds.

    Raises:
        UserError: when there are fewer labelled cases than folds, no splits_final.json, and `fold` is not "all".
    """
    unlabelled = {name for name, case in read_case_table(dataset_folder).items() if not case.labelled}
    num_cases = sum(path.stem not in unlabelled for path in (dataset_folder / data_identifier).glob("*.pkl"))
    splits = dataset_folder / "splits_final.json"
    if fold != "all" and num_cases < FOLDS and not splits.is_file():
        raise UserError(
            f"{dataset_folder / data_identifier} holds {num_cases} labelled cases, too few for nnU-Net's {FOLDS} "
            f"folds. Train on all of them (fold 'all'), or say in {splits} which are for training and which for "
            "validation."
        )


def set_start(dataset: str, plans: dict[str, Any], args: argparse.Namespace) -> UniMRSegConfig:
    """Write the checkpoint that `args` name into the plans, once it is known to fit; return the configuration.

    A path in a folder `fold_X`, X being the fold to train, is stored for every fold: another fold must not start from
    a model that was trained with its validation cases.

    Raises:
        UserError: before anything is written, when the checkpoint is absent, damaged, of other plans or of stage 1, and
            when the training that it is for has begun with another one.
    """
    section = RETROFIT if args.keep_complete else "stage2"
    given = Path(args.from_checkpoint).expanduser().absolute()
    if given.parent.name == f"fold_{args.fold}":
        given = given.parent.with_name("fold_{fold}") / given.name
    path = Path(str(given).replace("{fold}", args.fold))
    _check_checkpoint(dataset, plans, path, args)
    folder = result_folder(dataset, TRAINER_OF_SECTION[section], args.p, args.configuration)
    if training_state(folder / f"fold_{args.fold}") is not TrainingState.NONE:
        recorded = UniMRSegConfig.from_plans(read_json(folder / "plans.json"), args.configuration)
        began = getattr(recorded, section).start_from.replace("{fold}", args.fold)
        if began != str(path):
            raise UserError(
                f"{folder / f'fold_{args.fold}'} has been trained already, from {began or 'stage 1'}. To train it from "
                f"{path}, move that folder away."
            )
    others = [] if args.keep_complete else ["stage3.start_from"]
    settings = write_settings(dataset, args.p, args.configuration, [f"{section}.start_from={given}"], others)
    print(f"Wrote {section}.start_from = {given} to {plans_path(dataset, args.p)}", flush=True)
    return UniMRSegConfig.from_dict(settings)


def _check_checkpoint(dataset: str, plans: dict[str, Any], path: Path, args: argparse.Namespace) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_unimrseg.nnunet import checkpoints

    checkpoint = checkpoints.read_checkpoint(path)
    checkpoints.check_segments(checkpoint, path)
    configuration = PlansManager(plans).get_configuration(args.configuration).configuration
    differences = checkpoints.plans_differences(checkpoint, configuration)
    if args.keep_complete:
        dataset_json = read_dataset_json(nnunet_folder("nnUNet_preprocessed") / dataset / "dataset.json")
        differences += checkpoints.input_differences(checkpoint, plans, configuration, dataset_json)
    checkpoints.check_no_differences(path, differences)
    trained_fold = checkpoint.get("init_args", {}).get("fold", args.fold)
    if args.fold not in (str(trained_fold), "all"):
        print(
            f"{path} was trained in fold {trained_fold}, so it may have been trained with the cases that fold "
            f"{args.fold} is validated with. Their scores will then be too good.",
            flush=True,
        )


def _check_start(config: UniMRSegConfig, stage: str, args: argparse.Namespace) -> None:
    start_from = getattr(getattr(config, stage), "start_from", "")
    if stage == RETROFIT and start_from in ("", SCRATCH):
        raise UserError(
            "--keep-complete needs the checkpoint of a trained nnU-Net of the same plans, and retrofit.start_from does "
            "not name one. Add --from-checkpoint PATH."
        )
    path = Path(start_from.replace("{fold}", args.fold))
    if start_from not in ("", SCRATCH) and not path.is_file():
        otherwise = "" if stage == RETROFIT else ", or unset it to start from the stage before"
        raise UserError(
            f"{stage}.start_from names {path}, which does not exist. Correct it with `unimrseg configure`{otherwise}."
        )


def _check_trainable(dataset: str, data_identifier: str, args: argparse.Namespace) -> None:
    _check_device(args)
    check_folds(nnunet_folder("nnUNet_preprocessed") / dataset, data_identifier, args.fold)


def _check_device(args: argparse.Namespace) -> None:
    if args.num_gpus < 1:
        raise UserError(f"-num_gpus must be at least 1, found {args.num_gpus}.")
    if args.device != "cuda":
        if args.num_gpus > 1:
            raise UserError(f"-num_gpus {args.num_gpus} needs -device cuda, found -device {args.device}.")
        return
    if args.launcher != launchers.LOCAL:
        return  # they train elsewhere, or check the device of each process

    import torch

    if torch.cuda.device_count() < args.num_gpus:
        raise UserError(
            f"Training was asked for on {args.num_gpus} CUDA device(s), and torch finds {torch.cuda.device_count()}. "
            + ("Lower -num_gpus." if torch.cuda.device_count() else "Add: -device cpu")
        )
