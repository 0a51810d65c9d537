"""Reading checkpoints, and starting a stage from the weights of another one or of a stock nnU-Net."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nnunetv2_unimrseg.config import PLANS_KEY, UniMRSegConfig
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.modalities_in_plans import MODALITIES_KEY
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

HEADS = "decoder.seg_layers."
DECODER = "decoder."
SHARED_ENCODER = "decoder.encoder."
ADAPTERS = "adapters."

_ADAPTER_FIELDS = ("adapters", "adapter_first_stage", "adapter_window", "adapters_know_modalities", "reverse_attention")
"""Fields of `Stage3Config` that shape its network."""
_COMPARED = ("patch_size", "spacing", "normalization_schemes", "architecture")


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint that nnU-Net (or a trainer of this package) wrote.

    Raises:
        UserError: when the file is absent, cannot be read (corrupted, truncated) or is not nnU-Net's.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}. Train that model first, or name another checkpoint.")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=False)
    except Exception as error:
        raise UserError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}: {error}). The file is corrupted or was "
            "cut off while it was written (a full disk, a killed job). Restore it from a copy, or use another "
            "checkpoint of that fold (checkpoint_best.pth, checkpoint_latest.pth)."
        ) from error
    if not isinstance(checkpoint, Mapping) or "network_weights" not in checkpoint:
        raise UserError(
            f"{path} is not an nnU-Net checkpoint: it holds no 'network_weights'. Give a checkpoint_*.pth that "
            "nnUNetv2_train wrote."
        )
    return dict(checkpoint)


def weights_sha256(network_weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a state dict's names, types, shapes and values; order and device do not matter."""
    digest = hashlib.sha256()
    for name in sorted(network_weights):
        tensor = network_weights[name].detach().cpu()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plans_differences(checkpoint: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[str]:
    """Say in words where the plans that a checkpoint was trained with differ from `configuration`.

    The patch size, the spacing, the channels' normalisation and the architecture (features, strides, kernels) are
    compared, and the groups of channels where the trainer is of this package. An empty list means that they agree, or
    that the checkpoint does not record its plans.
    """
    init_args = checkpoint.get("init_args", {})
    if "plans" not in init_args:
        return []
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    theirs = PlansManager(init_args["plans"]).get_configuration(init_args["configuration"]).configuration
    is_ours = checkpoint.get("trainer_name") in TRAINER_OF_SECTION.values()  # other trainers know no modalities
    compared = (*_COMPARED, MODALITIES_KEY) if is_ours else _COMPARED
    return [line for key in compared for line in _differences(key, theirs.get(key), configuration.get(key))]


def adapter_differences(checkpoint: Mapping[str, Any], configuration: Mapping[str, Any]) -> list[str]:
    """Say in words where the adapters of a stage-3 checkpoint differ from those that `configuration` describes."""
    init_args = checkpoint.get("init_args", {})
    if "plans" not in init_args:
        return []
    theirs = UniMRSegConfig.from_plans(init_args["plans"], init_args["configuration"]).stage3
    ours = UniMRSegConfig.from_dict(configuration.get(PLANS_KEY, {})).stage3
    return [
        line
        for name in _ADAPTER_FIELDS
        for line in _differences(f"stage3.{name}", getattr(theirs, name), getattr(ours, name))
    ]


def _differences(name: str, theirs: object, ours: object) -> Iterator[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            yield from _differences(key, theirs.get(key), ours.get(key))
    elif _rounded(theirs) != _rounded(ours):
        yield f"{name}: {_rounded(theirs)} in the checkpoint, {_rounded(ours)} in the plans"


def _rounded(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return round(value, 6) if isinstance(value, float) else value


def transfer_weights(
    network: nn.Module,
    path: str | Path,
    configuration: Mapping[str, Any],
    log: Callable[[str], None] = print,
    stage1_decoder: bool = True,
) -> None:
    """Copy the weights of the checkpoint `path` into `network`.

    Adapters that the file lacks stay as they are. The decoder of a stage-1 checkpoint reconstructs images, so its heads
    (`decoder.seg_layers`) are left out, or all of it is.

    Args:
        network: the unwrapped network (neither compiled nor DDP).
        path: a checkpoint of this package or of a stock nnU-Net with the same plans.
        configuration: the plans' configuration that `network` was built from.
        log: called with one line that names the file.
        stage1_decoder: whether the decoder of a stage-1 checkpoint is taken, but for its heads.

    Raises:
        UserError: when the file cannot be read, comes from other plans (lists what differs) or holds other tensors.
    """
    checkpoint = read_checkpoint(path)
    left_out: tuple[str, ...] = ()
    kept = ""
    if checkpoint.get("trainer_name") == TRAINER_OF_SECTION["stage1"]:
        left_out, kept = ((HEADS,), " (all but the heads)") if stage1_decoder else ((DECODER,), " (the encoder)")
    weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
    problems = plans_differences(checkpoint, configuration)
    taken = {}
    for key, tensor in network.state_dict().items():
        if key.startswith(left_out) and not key.startswith(SHARED_ENCODER):
            continue
        if key not in weights:
            if not key.startswith(ADAPTERS):
                problems.append(f"{key}: not in the checkpoint")
        elif weights[key].shape != tensor.shape:
            problems.append(f"{key}: {tuple(weights[key].shape)} in the checkpoint, {tuple(tensor.shape)} in the plans")
        else:
            taken[key] = weights[key]
    if problems:
        shown = problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise UserError(
            f"The checkpoint {path} does not fit these plans:\n  - "
            + "\n  - ".join(shown)
            + "\nTrain that stage again with these plans, or use the plans that it was trained with."
        )
    network.load_state_dict({**network.state_dict(), **taken})
    log(f"Starting from the weights of {path}{kept}.")
