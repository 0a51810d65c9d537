"""nnU-Net's trainer in processes that train together, which may be on several machines, on GPUs or on CPUs."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel


class DistributedTrainer(nnUNetTrainer):
    """nnU-Net's trainer, which takes the device of its process from the caller.

    nnU-Net takes a process's rank among all (which it calls `local_rank`) for the number of its GPU. That is right on
    the first machine only, and never on a CPU. A `device` with a number, or a CPU, is used as it is; "cuda" without one
    is nnU-Net's choice.
    """

    is_ddp: bool
    grad_scaler: Any
    network: Any
    output_folder_base: Any
    _best_ema: Any

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_ddp and (device.type != "cuda" or device.index is not None):
            self.device = device
            self.grad_scaler = self.grad_scaler if device.type == "cuda" else None
            print(f"Process {dist.get_rank() + 1} of {dist.get_world_size()} trains on {device}.", flush=True)

    def initialize(self) -> None:
        """As nnU-Net's, but the network is distributed over the devices of the processes, whatever their numbers."""
        if not self.is_ddp or self.was_initialized:
            super().initialize()
            return
        self.is_ddp = False  # else nnU-Net would distribute the network over GPUs with the numbers of the ranks
        try:
            super().initialize()
        finally:
            self.is_ddp = True
        self._set_batch_size_and_oversample()
        self.network = distribute(self.network, self.device)
        self.loss = self._build_loss()

    def on_train_start(self) -> None:
        """As nnU-Net's; only the first process writes into the folders that all of them share."""
        if not self.is_ddp:
            super().on_train_start()
            return
        if self.local_rank == 0:
            self.do_split()  # which may draw the folds, for the others to read
        dist.barrier()
        shared = self.output_folder_base
        with tempfile.TemporaryDirectory() as own:
            self.output_folder_base = shared if self.local_rank == 0 else own
            super().on_train_start()
        self.output_folder_base = shared

    def from_all_ranks(self, value: Any) -> list[Any]:
        """Return this value of each process of a distributed training; without one, of this process alone."""
        if not self.is_ddp:
            return [value]
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, value)
        return gathered

    def without_synchronisation(self) -> AbstractContextManager[Any]:
        """Views inside keep their gradients to this rank; the step's last view, outside, adds up those of all ranks."""
        return cast("AbstractContextManager[Any]", self.network.no_sync()) if self.is_ddp else nullcontext()


def distribute(network: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return a network whose gradients are averaged over the processes, as nnU-Net makes it."""
    if device.type != "cuda":
        return DistributedDataParallel(network)
    return DistributedDataParallel(torch.nn.SyncBatchNorm.convert_sync_batchnorm(network), device_ids=[device])
