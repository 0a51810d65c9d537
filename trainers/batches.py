"""The composition of training batches where some cases have no label."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


def unlabelled_samples(share: float, batch_size: int) -> int:
    """Return how many samples of a batch are of unlabelled cases: the nearest to `share`, but at least one.

    At least one sample is labelled, so a batch of one has no unlabelled sample.
    """
    return min(max(1, round(share * batch_size)), batch_size - 1) if share > 0 else 0


class MixedDataLoader(nnUNetDataLoader):
    """nnU-Net's loader, with a fixed number of samples of unlabelled cases in every `mixed_every`-th batch.

    They come first in the batch. The other batches have labelled samples only.

    Args:
        data, batch_size, arguments, options: nnU-Net's.
        unlabelled: names of the unlabelled cases.
        num_unlabelled: their samples in a mixed batch.
        mixed_every: every so many batches is mixed.
    """

    get_do_oversample: Any

    def __init__(
        self,
        data: Any,
        batch_size: int,
        *arguments: Any,
        unlabelled: Collection[str],
        num_unlabelled: int,
        mixed_every: int,
        **options: Any,
    ) -> None:
        super().__init__(data, batch_size, *arguments, **options)
        self.labelled = [case for case in self.indices if case not in unlabelled]
        self.unlabelled = [case for case in self.indices if case in unlabelled]
        self.num_unlabelled = num_unlabelled if self.unlabelled else 0
        self.mixed_every = mixed_every
        self.num_batches = 0
        self.unlabelled_now = 0
        self.stock_oversampling = self.get_do_oversample
        self.oversampled_share = np.mean([self._oversample_last_XX_percent(sample) for sample in range(batch_size)])
        self.get_do_oversample = self._oversample_labelled

    def get_indices(self) -> np.ndarray:
        """Draw the cases of the next batch, unlabelled ones first."""
        self.num_batches += 1
        self.unlabelled_now = 0 if self.num_batches % self.mixed_every else self.num_unlabelled
        cases: np.ndarray = np.random.choice(self.labelled, self.batch_size - self.unlabelled_now)
        if self.unlabelled_now:
            cases = np.concatenate((np.random.choice(self.unlabelled, self.unlabelled_now), cases))
        return cases

    def _oversample_labelled(self, sample_idx: int) -> bool:
        """Say whether a sample must show foreground: of labelled ones the share that nnU-Net's rule gives a batch.

        In a mixed batch they are drawn, because a single labelled sample would always or never be one of them.
        """
        if self.unlabelled_now == 0:
            return bool(self.stock_oversampling(sample_idx))
        return sample_idx >= self.unlabelled_now and bool(np.random.uniform() < self.oversampled_share)


class StepOrder:
    """Hands out batches so that every `mixed_every`-th is one with unlabelled samples, and no other.

    nnU-Net's worker processes make them in this proportion, but deliver them in any order. A batch that comes too early
    waits; no more wait than there are worker processes, and `mixed_every` ones.

    Args:
        batches: nnU-Net's augmenter.
        unlabelled: names of the unlabelled cases.
        mixed_every: distance of two mixed batches in steps.
    """

    def __init__(self, batches: Iterator[dict[str, Any]], unlabelled: Collection[str], mixed_every: int) -> None:
        self.batches = batches
        self.unlabelled = unlabelled
        self.mixed_every = mixed_every
        self.steps = 0
        self.waiting: dict[bool, deque[dict[str, Any]]] = {True: deque(), False: deque()}

    def count_from(self, steps: int) -> None:
        """Go on as after `steps` batches; where batches are made in this process, the next one is of the right kind."""
        self.steps = steps
        loader = getattr(self.batches, "data_loader", None)
        if isinstance(loader, MixedDataLoader):
            loader.num_batches = steps
            self.waiting = {True: deque(), False: deque()}

    def __iter__(self) -> StepOrder:
        return self

    def __next__(self) -> dict[str, Any]:
        self.steps += 1
        wanted = self.waiting[self.steps % self.mixed_every == 0]
        while not wanted:
            batch = next(self.batches)
            self.waiting[any(str(key) in self.unlabelled for key in batch["keys"])].append(batch)
        return wanted.popleft()


def stock_dataloaders(trainer: nnUNetTrainer, loader: Any) -> tuple[Any, Any]:
    """Return what nnU-Net's `get_dataloaders` does, with another class in the place of its nnUNetDataLoader.

    nnU-Net's method takes the class from its module. Here it runs in a copy of the module's names that has the other
    class under that name; the module stays as it is.
    """
    stock = nnUNetTrainer.get_dataloaders
    names = {**stock.__globals__, nnUNetDataLoader.__name__: loader}
    loaders: tuple[Any, Any] = types.FunctionType(stock.__code__, names, closure=stock.__closure__)(trainer)
    return loaders
