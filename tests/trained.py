"""Model folders as nnU-Net leaves them, with tiny untrained networks, and a raw dataset of which they could come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tiny
import torch
from batchgenerators.utilities.file_and_folder_operations import write_pickle
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

DATASET = "Dataset998_Tiny"
CONFIGURATION = "3d_fullres"
STOCK = "nnUNetTrainer"


def write_model(
    results: Path,
    trainer: str = TRAINER_OF_SECTION["stage2"],
    folds: Sequence[str] = ("0",),
    dataset_json: dict | None = None,
) -> Path:
    """Write a model folder into nnUNet_results; each fold's network has other weights."""
    dataset_json = dataset_json or tiny.dataset_json()
    folder = results / DATASET / f"{trainer}__nnUNetPlans__{CONFIGURATION}"
    for fold in folds:
        (folder / f"fold_{fold}").mkdir(parents=True, exist_ok=True)
        checkpoint = {
            "network_weights": _network(trainer, int(fold), dataset_json).state_dict(),
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": (0, 1),
            "init_args": {"configuration": CONFIGURATION, "plans": tiny.plans()},
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def _network(trainer: str, seed: int, dataset_json: dict) -> torch.nn.Module:
    torch.manual_seed(seed)
    plans_manager = PlansManager(tiny.plans())
    configuration = plans_manager.get_configuration(CONFIGURATION)
    outputs = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    if trainer != STOCK:
        return build_network(configuration, 4, outputs, False, adapters=False)
    return get_network_from_plans(
        configuration.network_arch_class_name, configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import, 4, outputs, deep_supervision=False,
    )  # fmt: skip


def write_cases(images: Path, labels: Path, names: Sequence[str], num_labels: int = 3) -> None:
    """Write complete cases with random labels."""
    for number, name in enumerate(names):
        tiny.write_case(images, name, tiny.image(number))
        rng = np.random.default_rng(100 + number)
        tiny.write(labels / f"{name}{tiny.ENDING}", rng.integers(0, num_labels, tiny.SHAPE).astype(np.uint8))


def write_dataset(root: Path, names: Sequence[str], splits: Sequence[Sequence[str]]) -> None:
    """Write nnUNet_raw with the cases and nnUNet_preprocessed with what says which fold validates which of them."""
    raw, preprocessed = root / "raw" / DATASET, root / "preprocessed" / DATASET
    write_cases(raw / "imagesTr", raw / "labelsTr", names)
    (raw / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    data = preprocessed / "nnUNetPlans_3d_fullres"
    data.mkdir(parents=True)
    for name in names:
        np.savez(data / f"{name}.npz", data=np.zeros(1))
        write_pickle({}, str(data / f"{name}.pkl"))
    folds = [{"train": [name for name in names if name not in fold], "val": list(fold)} for fold in splits]
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
