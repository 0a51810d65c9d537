"""Tiny stage-1 models for unit tests: a network whose output is known, in a model folder as nnU-Net leaves it."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
import torch
from inference_options import with_options
from torch import nn

from nnunetv2_unimrseg.inference import reconstructor as model
from nnunetv2_unimrseg.reconstruction.reconstruct import reconstruct as make_reconstructions
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

SAME_SPACING = (2.0, 3.0, 2.5)
"""The spacing of `tiny.write`'s files after the transposition of `tiny.plans`: nothing is resampled."""

reconstructions = with_options(make_reconstructions)
"""`reconstruct` of the package."""

QUIET = {"device": "cpu", "num_threads_preprocessing": 0, "num_threads_export": 0, "show_progress": False}


def reconstruct(*arguments, **keywords):
    """Reconstruct, and return the table alone."""
    return reconstructions(*arguments, **keywords).table


class Multiples(nn.Module):
    """Returns, as channel k, k + 1 times the first available channel."""

    def forward(self, x):
        first = int((~x.isnan().flatten(2).any(2))[0].nonzero()[0])
        image = torch.nan_to_num(x[:, first : first + 1])
        return torch.cat([image * (channel + 1) for channel in range(x.shape[1])], 1)


def write_model(
    folder: Path, monkeypatch=None, *, plans=None, dataset_json=None, trainer="stage1", folds=("0",)
) -> Path:
    """Write a stage-1 model folder; with `monkeypatch` its network is `Multiples`, else one with random weights."""
    plans, dataset_json = plans or tiny.plans(spacing=SAME_SPACING), dataset_json or tiny.dataset_json()
    if monkeypatch is not None:
        monkeypatch.setattr(model, "build_network", lambda *_, **__: Multiples())
    folder = folder / f"{TRAINER_OF_SECTION.get(trainer, trainer)}__nnUNetPlans__3d_fullres"
    for number, fold in enumerate(folds):
        (folder / f"fold_{fold}").mkdir(parents=True)
        checkpoint = {
            "network_weights": {}
            if monkeypatch is not None
            else _weights(plans, len(dataset_json["channel_names"]), number),
            "trainer_name": TRAINER_OF_SECTION.get(trainer, trainer),
            "inference_allowed_mirroring_axes": (0, 1),
            "init_args": {"configuration": "3d_fullres", "plans": plans},
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def _weights(plans: dict, channels: int, seed: int) -> dict:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    torch.manual_seed(seed)
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    return model.build_network(configuration, channels, channels, False, adapters=False).state_dict()
