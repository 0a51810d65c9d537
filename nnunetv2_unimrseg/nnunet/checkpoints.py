"""Reading checkpoints, and starting a stage from the weights of another one or of a stock nnU-Net."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
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
INCOMPLETE_DECODER = "incomplete_decoder."

_ADAPTER_FIELDS = ("adapters", "adapter_first_stage", "adapter_window", "adapters_know_modalities", "reverse_attention")
"""Fields of `Stage3Config` and `RetrofitConfig` that shape their networks."""
_RESAMPLING = (
    "use_mask_for_norm",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_probabilities",
    "resampling_fn_probabilities_kwargs",
)
_COMPARED = ("patch_size", "spacing", "normalization_schemes", "architecture")


_NUMPY_TYPES: list[Any] = [
    np.ndarray,
    np.dtype,
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"},
    *(
        (function, f"{module}.{name}")
        for name, function in (("scalar", np.float64(0).__reduce__()[0]), ("_reconstruct", np.empty(0).__reduce__()[0]))
        for module in ("numpy._core.multiarray", "numpy.core.multiarray")  # of numpy 2 and 1
    ),
]
"""What nnU-Net's checkpoints hold besides tensors and Python's own types: the numbers of its log."""


def read_checkpoint(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint that nnU-Net (or a trainer of this package) wrote.

    Only tensors, Python's own types and numpy's are read. Where a file holds objects of other classes, which can run
    code of whoever wrote it, a warning names them before they are read.

    Raises:
        UserError: when the file is absent, cannot be read (corrupted, truncated) or is not nnU-Net's.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}. Train that model first, or name another checkpoint.")
    try:
        others = _other_classes(path)
        if others:
            warnings.warn(
                f"The checkpoint {path} holds objects of {', '.join(others)}, so reading it can run code. Use it only "
                "if you trust whoever made it.",
                stacklevel=2,
            )
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            checkpoint = torch.load(path, map_location=device, weights_only=not others)
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


def _other_classes(path: Path) -> list[str]:
    """Return the names of the classes and functions in a checkpoint that `weights_only` does not read."""
    with torch.serialization.safe_globals(_NUMPY_TYPES):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))


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


def input_differences(
    checkpoint: Mapping[str, Any],
    plans: Mapping[str, Any],
    configuration: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
) -> list[str]:
    """Say in words what else than `plans_differences` would make a checkpoint's predictions differ here.

    Args:
        checkpoint: what `read_checkpoint` returns; one that does not record its plans and dataset is not compared.
        plans, configuration: the plans here, and the configuration in them that is trained.
        dataset_json: the dataset's description here.
    """
    init_args = checkpoint.get("init_args", {})
    if not {"plans", "dataset_json"} <= init_args.keys():
        return []
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    their_plans = init_args["plans"]
    theirs = PlansManager(their_plans).get_configuration(init_args["configuration"]).configuration
    differences = [line for key in _RESAMPLING for line in _differences(key, theirs.get(key), configuration.get(key))]
    for key in ("transpose_forward", "transpose_backward"):
        differences += _differences(key, their_plans.get(key), plans.get(key))
    for number, scheme in enumerate(configuration["normalization_schemes"]):
        if scheme == "CTNormalization":
            both = (entry["foreground_intensity_properties_per_channel"][str(number)] for entry in (their_plans, plans))
            differences += _differences(f"intensities of channel {number}", *both)
    for key in ("channel_names", "labels", "regions_class_order"):
        their_entry, our_entry = (entry.get(key) for entry in (init_args["dataset_json"], dataset_json))
        if their_entry != our_entry:
            differences.append(f"{key}: {their_entry} in the checkpoint, {our_entry} in dataset.json")
    return differences


def adapter_differences(checkpoint: Mapping[str, Any], configuration: Mapping[str, Any], section: str) -> list[str]:
    """Say in words where a checkpoint's adapters differ from those that `section` of `configuration` describes."""
    init_args = checkpoint.get("init_args", {})
    if "plans" not in init_args:
        return []
    theirs = getattr(UniMRSegConfig.from_plans(init_args["plans"], init_args["configuration"]), section)
    ours = getattr(UniMRSegConfig.from_dict(configuration.get(PLANS_KEY, {})), section)
    return [
        line
        for name in _ADAPTER_FIELDS
        if hasattr(ours, name)
        for line in _differences(f"{section}.{name}", getattr(theirs, name), getattr(ours, name))
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
) -> dict[str, Any]:
    """Copy the weights of the checkpoint `path` into `network`; return what the checkpoint holds.

    Adapters that the file lacks stay as they are. A decoder for incomplete inputs that it lacks starts as a copy of its
    decoder. The decoder of a stage-1 checkpoint reconstructs images, so its heads (`decoder.seg_layers`) are left out,
    or all of it is.

    Args:
        network: the unwrapped network (neither compiled nor DDP).
        path: a checkpoint of this package or of a stock nnU-Net with the same plans.
        configuration: the plans' configuration that `network` was built from.
        log: called with one line that names the file.
        stage1_decoder: whether the decoder of a stage-1 checkpoint is taken, but for its heads.

    Raises:
        UserError: when the file cannot be read, comes from other plans (lists what differs) or holds other tensors;
            and when it is stage 1's, but the network keeps the decoder as it is.
    """
    checkpoint = read_checkpoint(path)
    state = network.state_dict()
    if any(key.startswith(INCOMPLETE_DECODER) for key in state):
        check_segments(checkpoint, path)
    left_out: tuple[str, ...] = ()
    kept = ""
    if checkpoint.get("trainer_name") == TRAINER_OF_SECTION["stage1"]:
        left_out, kept = ((HEADS,), " (all but the heads)") if stage1_decoder else ((DECODER,), " (the encoder)")
    weights = {key.removeprefix("module."): value for key, value in checkpoint["network_weights"].items()}
    problems = plans_differences(checkpoint, configuration)
    taken = {}
    for key, tensor in state.items():
        if key.startswith(left_out) and not key.startswith(SHARED_ENCODER):
            continue
        source = key
        if key not in weights and key.startswith(INCOMPLETE_DECODER):
            source = DECODER + key.removeprefix(INCOMPLETE_DECODER)
        if source not in weights:
            if not key.startswith(ADAPTERS):
                problems.append(f"{source}: not in the checkpoint")
        elif weights[source].shape != tensor.shape:
            found = tuple(weights[source].shape)
            problems.append(f"{source}: {found} in the checkpoint, {tuple(tensor.shape)} in the plans")
        else:
            taken[key] = weights[source]
    check_no_differences(path, list(dict.fromkeys(problems)))
    network.load_state_dict({**state, **taken})
    log(f"Starting from the weights of {path}{kept}.")
    return checkpoint


def check_segments(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Check that a checkpoint is not one of stage 1.

    Raises:
        UserError: when it is.
    """
    if checkpoint.get("trainer_name") == TRAINER_OF_SECTION["stage1"]:
        raise UserError(
            f"{path} is a stage-1 model: it reconstructs images and cannot segment. Name the checkpoint of a trained "
            "nnU-Net (nnUNetTrainer) of the same plans."
        )


def check_no_differences(path: str | Path, differences: list[str]) -> None:
    """Check that nothing of a checkpoint differs from the plans.

    Raises:
        UserError: lists the first `differences`, where there are any.
    """
    if differences:
        shown = differences[:10] + ([f"... and {len(differences) - 10} more"] if len(differences) > 10 else [])
        raise UserError(
            f"The checkpoint {path} does not fit these plans:\n  - "
            + "\n  - ".join(shown)
            + "\nTrain that stage again with these plans, or use the plans that it was trained with."
        )
