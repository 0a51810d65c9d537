"""What the checks of cases add to `unimrseg plan` and to `unimrseg predict`, as a share of the whole, in one run.

    python -m scripts.benchmarks.checks                            50 generated patients of 40 x 48 x 40 voxels
    python -m scripts.benchmarks.checks --shape 128 128 96         larger ones

Planning and predicting are nnU-Net's and this package's own functions in this process (and the worker processes that
they start), timed part by part: for `plan` the check of the raw cases, the fingerprint, the plans, the preprocessing
and the check of what was preprocessed; for `predict` the check of the cases, and all that follows. The network has
random weights, which does not change the time. A Markdown table is printed; nothing is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nnunetv2_unimrseg.nnunet.paths import nnunet_folder

NUMBER, NAME = 990, "Dataset990_UniMRSegPhantom"
PLANS, CONFIGURATION = "nnUNetUniMRSegPlans", "3d_fullres"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=50, metavar="CASES", help="of each kind (default: 50)")
    parser.add_argument("--shape", type=int, nargs=3, default=(40, 48, 40), metavar=("X", "Y", "Z"))
    parser.add_argument("--base-features", type=int, default=8, help="of the network (default: 8)")
    parser.add_argument("-gpu_memory_target", type=float, default=0.2, metavar="GB", help="of the plans (default: 0.2)")
    parser.add_argument("-np", type=int, default=2, help="processes of nnU-Net (default: 2)")
    parser.add_argument("--mirroring", action="store_true", help="predict with test-time mirroring, as by default")
    return parser.parse_args()


def time_call(function: Callable[[], object]) -> float:
    """Return the wall time of a call in seconds; what it prints is left out."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        function()
    return time.perf_counter() - start


def time_plan(args: argparse.Namespace) -> dict[str, float]:
    """Plan and preprocess the phantom; return the seconds of each part."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset

    from nnunetv2_unimrseg.cli.plan import check_preprocessed
    from nnunetv2_unimrseg.data.training_cases import RawDataset, check_raw_dataset
    from nnunetv2_unimrseg.planners.fingerprint import FINGERPRINT_NAME, write_fingerprint
    from nnunetv2_unimrseg.planners.planner import UniMRSegPlanner
    from nnunetv2_unimrseg.planners.preprocess import preprocess_dataset

    folder, fingerprint = (
        nnunet_folder("nnUNet_raw") / NAME,
        nnunet_folder("nnUNet_preprocessed") / NAME / FINGERPRINT_NAME,
    )
    raw: list[RawDataset] = []
    planner = functools.partial(UniMRSegPlanner, base_features=args.base_features)
    parts: dict[str, Callable[[], object]] = {
        "check of the raw cases": lambda: raw.append(check_raw_dataset(folder)),
        "fingerprint": lambda: write_fingerprint(fingerprint, raw[0], args.np),
        "plans": lambda: plan_experiment_dataset(
            NUMBER,
            experiment_planner_class=planner,
            gpu_memory_target_in_gb=args.gpu_memory_target,
            overwrite_plans_name=PLANS,
        ),
        "preprocessing": lambda: preprocess_dataset(NAME, PLANS, [CONFIGURATION], [args.np], raw[0]),
        "check of the preprocessed cases": lambda: check_preprocessed(NAME, PLANS, [CONFIGURATION]),
    }
    return {name: time_call(part) for name, part in parts.items()}


def time_predict(args: argparse.Namespace) -> dict[str, float]:
    """Predict the phantom's unseen patients; return the seconds of the check and of the rest."""
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunetv2_unimrseg.data.cases import check_cases
    from nnunetv2_unimrseg.inference import jobs
    from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
    from nnunetv2_unimrseg.method.networks.build import build_network
    from nnunetv2_unimrseg.nnunet.paths import read_plans
    from nnunetv2_unimrseg.utils.files import read_json

    raw = nnunet_folder("nnUNet_raw") / NAME
    dataset_json, plans_manager = read_json(raw / "dataset.json"), PlansManager(read_plans(NAME, PLANS))
    configuration = plans_manager.get_configuration(CONFIGURATION)
    heads = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    network = build_network(configuration, 4, heads, False, adapters=True)
    predictor = UniMRSegPredictor(device=torch.device("cpu"), use_mirroring=args.mirroring, allow_tqdm=False)
    predictor.manual_initialization(
        network, plans_manager, configuration, [network.state_dict()], dataset_json, "UniMRSegStage3Trainer", (0, 1, 2)
    )
    seconds: dict[str, float] = {}

    def timed_check(*checked: object, **options: object) -> object:
        start = time.perf_counter()
        found = check_cases(*checked, **options)
        seconds["check of the cases"] = time.perf_counter() - start
        return found

    jobs.check_cases = timed_check  # of this process alone
    with tempfile.TemporaryDirectory() as output:
        predict = functools.partial(
            predictor.predict_from_files,
            str(raw / "imagesTs"),
            output,
            num_processes_preprocessing=1,
            num_processes_segmentation_export=1,
        )
        whole = time_call(predict)
    jobs.check_cases = check_cases
    return {**seconds, "preprocessing, prediction and export": whole - seconds["check of the cases"]}


def rows(command: str, seconds: dict[str, float]) -> list[str]:
    """Return the rows of the table for one command."""
    whole = sum(seconds.values())
    return [
        *(f"| {command} | {name} | {value:.1f} | {100 * value / whole:.1f} |" for name, value in seconds.items()),
        f"| {command} | all | {whole:.1f} | 100 |",
    ]


def main() -> None:
    """Measure and print."""
    args = arguments()
    with tempfile.TemporaryDirectory() as root:
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[variable] = str(Path(root) / variable)
            Path(os.environ[variable]).mkdir()
        from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

        write_phantom_dataset(nnunet_folder("nnUNet_raw") / NAME, args.n, args.n, tuple(args.shape))
        table = [*rows("plan", time_plan(args)), *rows("predict", time_predict(args))]
    size = " x ".join(map(str, args.shape))
    print(f"\n{args.n} cases of {size} voxels and 4 modalities, base features {args.base_features}\n")
    print("| command | part | seconds | share (%) |\n|---|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main()
