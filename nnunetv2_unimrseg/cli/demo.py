"""Write the generated demo dataset (4 modalities, a tumour of 3 classes) into nnUNet_raw.

unimrseg demo                       16 training and 6 unseen patients as Dataset900_UniMRSegPhantom
unimrseg demo -d 7 -n 40 --seed 1   others, under another number

The same arguments give the same files. The commands to run next are printed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nnunetv2_unimrseg.errors import UserError

NAME = "UniMRSegPhantom"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg demo`."""
    parser.add_argument("-d", type=int, default=900, metavar="NUMBER", help="dataset number, 1 to 999 (default: 900)")
    parser.add_argument("-n", type=int, default=16, metavar="CASES", help="training patients (default: 16)")
    parser.add_argument("--unseen", type=int, default=6, metavar="CASES", help="patients in imagesTs (default: 6)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=(40, 48, 40),
        metavar=("X", "Y", "Z"),
        help="voxels of 3 mm along each axis (default: 40 48 40)",
    )
    parser.add_argument("--seed", type=int, default=0, help="what everything is drawn from (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Write the dataset and print the commands to run next."""
    folder = phantom_folder(args.d)

    from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

    write_phantom_dataset(folder, args.n, args.unseen, args.shape, seed=args.seed)
    print(f"Wrote {args.n} training and {args.unseen} unseen patients to {folder}.")
    print("Next:\n" + "\n".join(f"  {command}" for command in next_commands(args.d, folder)))


def phantom_folder(number: int) -> Path:
    """Return the folder in nnUNet_raw for the phantom of this number.

    Raises:
        UserError: when nnUNet_raw is not set, the number is not between 1 and 999, or another dataset has it.
    """
    from nnunetv2_unimrseg.nnunet.paths import VARIABLES, nnunet_folder

    raw = nnunet_folder("nnUNet_raw")
    if not 1 <= number <= 999:
        raise UserError(f"A dataset number lies between 1 and 999, found {number}. Choose another with -d.")
    name = f"Dataset{number:03d}_{NAME}"
    folders = [Path(os.environ[variable]) for variable in VARIABLES if os.environ.get(variable)]
    others = {entry.name for folder in folders for entry in folder.glob(f"Dataset{number:03d}_*")} - {name}
    if others:
        raise UserError(
            f"Dataset number {number} is taken by {', '.join(sorted(others))}, and nnU-Net needs one dataset a number. "
            "Choose another with -d."
        )
    return raw / name


def next_commands(number: int, folder: Path) -> list[str]:
    """Return the commands that plan, train and predict this dataset on a small machine."""
    dataset = f"-d {number} -c 3d_fullres -p nnUNetUniMRSegPlans"
    labels = folder / "labelsTs"
    return [
        f"unimrseg plan -d {number} -c 3d_fullres -gpu_memory_target 0.2 --base-features 8",
        f"unimrseg configure {dataset} --recipe short",
        f"unimrseg train {number} 3d_fullres 0 -p nnUNetUniMRSegPlans -device cpu",
        f"unimrseg predict -i {folder / 'imagesTs'} -o predictions {dataset} -f 0 -device cpu",
        f"unimrseg evaluate -i {folder / 'imagesTs'} -l {labels} -o evaluation {dataset} -f 0 -device cpu",
    ]
