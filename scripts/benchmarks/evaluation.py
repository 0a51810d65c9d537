"""Time of evaluating every subset, over that many stock predictions of the same cases, in one run.

    python -m scripts.benchmarks.evaluation -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans -i IMAGES -l LABELS

Both are measured as whole processes: `nnUNetv2_predict` of the complete cases, and `unimrseg evaluate` of all subsets
with its tables, plots and report. They take turns, and medians are printed as a Markdown table. Nothing is kept.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nnunetv2_unimrseg.nnunet.discovery import VARIABLE, append_extension_folder
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.files import read_json


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag in ("-d", "-c", "-i", "-l"):
        parser.add_argument(flag, required=True)
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS")
    parser.add_argument("-tr", default=TRAINER_OF_SECTION["stage3"], metavar="TRAINER")
    parser.add_argument("-f", default="0", metavar="FOLD")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--disable_tta", action="store_true")
    parser.add_argument("--rounds", type=int, default=3, help="measured runs of each command (default: 3)")
    return parser.parse_args()


def time_call(command: list[str], output: Path) -> float:
    """Run a command that writes into `output`, which is removed before, and return its wall time in seconds."""
    shutil.rmtree(output, ignore_errors=True)
    environment = {**os.environ, VARIABLE: append_extension_folder(os.environ.get(VARIABLE))}
    start = time.perf_counter()
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout}\n{result.stderr}")
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    args = arguments()
    scripts = Path(sys.executable).parent
    model = ["-d", args.d, "-c", args.c, "-p", args.p, "-tr", args.tr, "-f", args.f, "-device", args.device]
    model += ["--disable_tta"] if args.disable_tta else []
    with tempfile.TemporaryDirectory() as folder:
        predicted, evaluated = Path(folder) / "predicted", Path(folder) / "evaluated"
        stock = [str(scripts / "nnUNetv2_predict"), "-i", args.i, "-o", str(predicted), *model]
        own = [str(scripts / "unimrseg"), "evaluate", "--no_store", "-i", args.i, "-l", args.l, "-o", str(evaluated)]
        own += model
        seconds: dict[str, list[float]] = {"stock": [], "own": []}
        for _ in range(args.rounds):
            seconds["stock"].append(time_call(stock, predicted))
            seconds["own"].append(time_call(own, evaluated))
        summary = read_json(evaluated / "summary.json")
    subsets = len(summary["subsets"])
    one, all_of_them = (statistics.median(seconds[name]) for name in ("stock", "own"))
    print(f"{args.d}, {args.c}, {args.p}, {len(summary['cases'])} cases, {args.device}, median of {args.rounds}\n")
    print("| what | seconds |\n|---|--:|")
    print(f"| one stock prediction of the complete cases | {one:.1f} |")
    print(f"| evaluation of {subsets} subsets, report included | {all_of_them:.1f} |")
    print(f"| evaluation / ({subsets} x stock prediction) | {all_of_them / (subsets * one):.2f} |")


if __name__ == "__main__":
    main()
