"""What the three stages cost, as ratios to stock nnU-Net measured in the same run.

    python scripts/benchmark_cost.py -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans -device cpu

The dataset must be planned and preprocessed. Trainers take turns on one batch, so that whatever else the machine does
hits all of them; medians are printed as a Markdown table. Stock nnU-Net computes in float32 on a CPU; with
`--precision float32` the trainers of this package do so too, with `auto` they use bfloat16 where the CPU has it.
Nothing is kept: the result folders that nnU-Net's trainers create lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

STOCK = "stock nnU-Net"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of a preprocessed dataset")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-f", default="0", metavar="FOLD")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=10, help="measured steps of each trainer (default: 10)")
    parser.add_argument("--precision", default="float32", choices=("float32", "auto", "bfloat16"), help="on a CPU")
    return parser.parse_args()


def make_trainers(args: argparse.Namespace, plans: dict[str, Any], dataset_json: dict[str, Any]) -> dict[str, Any]:
    """Return initialised trainers that start at random, stock nnU-Net's first."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_unimrseg.folders import fold_name
    from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
    from nnunetv2_unimrseg.trained_model import findable_trainers

    with findable_trainers(), contextlib.redirect_stdout(io.StringIO()):
        own = {name: recursive_find_trainer_class_by_name(trainer) for name, trainer in TRAINER_OF_SECTION.items()}
    classes = {STOCK: nnUNetTrainer, **own}
    fold = fold_name(args.f)
    trainers = {}
    for name, trainer_class in classes.items():
        with contextlib.redirect_stdout(io.StringIO()):
            own_plans = {**copy.deepcopy(plans), "continue_training": False}
            trainer = trainer_class(
                own_plans, args.c, fold if fold == "all" else int(fold), dataset_json, torch.device(args.device)
            )
            trainer.weights_were_loaded = True
            trainer.on_train_start()
        trainer.network.train()
        trainers[name] = trainer
    return trainers


def median_seconds(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Time each of the steps once a round, after one round that is not counted; return their medians in seconds."""
    import torch
    from tqdm import trange

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in trange(rounds + 1, desc="rounds"):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_steps(trainers: Mapping[str, Any]) -> dict[str, Callable[[], object]]:
    """Return one training step of each trainer, all on the same batch."""
    batch = next(trainers[STOCK].dataloader_train)

    def step(trainer: Any) -> None:
        target = [scale.clone() for scale in batch["target"]]
        trainer.train_step({**batch, "data": batch["data"].clone(), "target": target})

    return {name: lambda trainer=trainer: step(trainer) for name, trainer in trainers.items()}


def prediction_steps(trainers: Mapping[str, Any]) -> dict[str, Callable[[], object]]:
    """Return the prediction of one patch by stock nnU-Net and by stage 3, complete and without its first modality.

    The networks are set as stock prediction has them: one resolution, nnU-Net's memory layout.
    """
    import torch

    patch = next(trainers[STOCK].dataloader_val)["data"][:1].to(trainers[STOCK].device)
    incomplete = patch.clone()
    incomplete[:, 0] = torch.nan

    for name in (STOCK, "stage3"):
        trainers[name].set_deep_supervision_enabled(False)
        trainers[name].network.eval().to(memory_format=torch.contiguous_format)

    def predict(name: str, image: torch.Tensor) -> None:
        with torch.inference_mode():
            trainers[name].network(image)

    return {
        STOCK: lambda: predict(STOCK, patch),
        "stage3, complete": lambda: predict("stage3", patch),
        "stage3, one modality missing": lambda: predict("stage3", incomplete),
    }


def print_table(title: str, seconds: Mapping[str, float]) -> None:
    """Print medians and their ratios to stock nnU-Net's."""
    print(f"\n| {title} | seconds | / stock |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.3f} | {value / seconds[STOCK]:.2f} |")


def main() -> None:
    """Measure and print."""
    args = arguments()
    with tempfile.TemporaryDirectory() as results:
        os.environ.update(nnUNet_results=results, nnUNet_n_proc_DA="0")
        import torch

        from nnunetv2_unimrseg.config import PLANS_KEY
        from nnunetv2_unimrseg.folders import (
            find_dataset,
            inherited_value,
            nnunet_folder,
            read_configuration,
            read_json,
        )
        from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

        dataset = find_dataset(args.d, "nnUNet_preprocessed")
        plans, _ = read_configuration(dataset, args.p, args.c)
        set_in_plans = inherited_value(plans, args.c, PLANS_KEY) or {}
        plans["configurations"][args.c][PLANS_KEY] = {
            section: {**set_in_plans.get(section, {}), "cpu_precision": args.precision}
            for section in TRAINER_OF_SECTION
        }
        dataset_json = read_json(nnunet_folder("nnUNet_preprocessed") / dataset / "dataset.json")
        trainers = make_trainers(args, plans, dataset_json)
        manager = trainers[STOCK].configuration_manager
        print(f"{dataset}, {args.c}, {args.p}: patch {manager.patch_size}, batch {manager.batch_size}")
        print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.precision}")
        print_table("training step", median_seconds(training_steps(trainers), args.rounds, args.device))
        print_table("prediction of a patch", median_seconds(prediction_steps(trainers), args.rounds, args.device))


if __name__ == "__main__":
    main()
