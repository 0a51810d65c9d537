"""Which checkpoint an interrupted training goes on from, and taking up what it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnunetv2_unimrseg.errors import UserError, counted, in_one_line, listed
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint
from nnunetv2_unimrseg.utils.files import has_zip_directory

if TYPE_CHECKING:
    from nnunetv2_unimrseg.trainers.base import UniMRSegTrainer

FINAL, BEST, LATEST = (f"checkpoint_{name}.pth" for name in ("final", "best", "latest"))
NAMES = (FINAL, BEST, LATEST)
"""nnU-Net's checkpoints. Of those written after the same epoch the first is taken: a final one ends the training, and
a latest one was written before it was known whether that epoch is the best."""

_NEEDED = (
    "network_weights",
    "optimizer_state",
    "grad_scaler_state",
    "logging",
    "_best_ema",
    "current_epoch",
    "init_args",
)


@dataclass(frozen=True)
class Newest:
    """The checkpoint to go on from.

    Attributes:
        path: where it lies.
        content: what it holds.
        damaged: name of each checkpoint that cannot be read -> why.
    """

    path: Path
    content: dict[str, Any]
    damaged: dict[str, str]

    def __str__(self) -> str:
        passed_over = "".join(f" {name} is damaged and was passed over: {why}." for name, why in self.damaged.items())
        done = counted(self.content["current_epoch"], "epoch")
        return f"Continuing from {self.path}, the newest whole checkpoint, after {done}.{passed_over}"


def newest_checkpoint(folder: Path) -> Newest:
    """Return the whole checkpoint in a fold's folder that was written after the highest epoch.

    What is left of an earlier training, over which another was started without --c, comes last.

    Raises:
        UserError: when none is whole; lists each with what is wrong with it.
    """
    newest: tuple[Path, dict[str, Any]] | None = None
    damaged = {}
    for path in (folder / name for name in NAMES):
        if not path.exists():
            continue
        try:
            content = _read(path)
        except UserError as error:
            damaged[path.name] = str(error)
            continue
        if newest is None or _age(content) > _age(newest[1]):
            newest = path, content
    if newest is None:
        raise UserError(
            f"The training in {folder} cannot be continued: none of its checkpoints is whole.\n"
            + listed([f"{name}: {why}" for name, why in damaged.items()])
            + "\nRestore a copy of one of them, or remove them to start this training anew."
        )
    return Newest(*newest, damaged)


def _age(content: Mapping[str, Any]) -> tuple[float, int]:
    """Return when the training of a checkpoint was begun (seconds since 1970), and the epochs done."""
    starts = content["logging"].get("epoch_start_timestamps") or [0.0]
    return float(starts[0]), content["current_epoch"]


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint; the UserError says no more than why it is not whole."""
    try:
        content = read_checkpoint(path)
    except UserError as error:
        if isinstance(error.__cause__, MemoryError | PermissionError):  # says nothing against the file
            raise error.__cause__ from None
        if path.stat().st_size == 0:
            raise UserError("it is empty") from error
        if not has_zip_directory(path):
            raise UserError(f"it ends after {path.stat().st_size} bytes, before its table of contents") from error
        raise UserError(in_one_line(error.__cause__ or error)) from error
    absent = [key for key in _NEEDED if key not in content]
    if absent:
        raise UserError(f"it holds no {', '.join(absent)}")
    return content


def carry_momentum(network: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Mapping[str, Any]) -> int:
    """Give the parameters of an optimizer the momentum that those of the same name have in a checkpoint.

    Returns:
        For how many parameters there is one; 0 for a checkpoint that does not name its parameters, as nnU-Net's.
    """
    saved = checkpoint.get("optimizer_state", {"param_groups": []})
    numbers = {
        name: number
        for group in saved["param_groups"]
        for name, number in zip(group.get("param_names", ()), group["params"], strict=False)
    }
    carried = 0
    for name, parameter in network.named_parameters():
        momentum = saved["state"].get(numbers[name], {}).get("momentum_buffer") if name in numbers else None
        if momentum is not None and parameter.requires_grad:
            optimizer.state[parameter]["momentum_buffer"] = momentum.to(parameter, copy=True)
            carried += 1
    return carried


def restore_state(trainer: UniMRSegTrainer, checkpoint: Mapping[str, Any]) -> None:
    """Put an initialised trainer into the state that a checkpoint holds.

    nnU-Net's `load_checkpoint` does this with a file, but fails (2.8.1) when it is given what a file holds.
    """
    network = trainer.unwrapped_network
    known = network.state_dict().keys()
    network.load_state_dict({
        name if name in known else name.removeprefix("module."): value
        for name, value in checkpoint["network_weights"].items()
    })  # fmt: skip
    trainer.my_init_kwargs = checkpoint["init_args"]
    trainer.current_epoch = checkpoint["current_epoch"]
    trainer.logger.load_checkpoint(checkpoint["logging"])
    trainer._best_ema = checkpoint["_best_ema"]
    trainer.inference_allowed_mirroring_axes = checkpoint.get(
        "inference_allowed_mirroring_axes", trainer.inference_allowed_mirroring_axes
    )
    trainer.optimizer.load_state_dict(checkpoint["optimizer_state"])
    if trainer.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
        trainer.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
