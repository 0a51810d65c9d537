"""Modality dropout, modality shuffle and block masking: random draws, and the deterministic parts that apply them.

Draws are made on the CPU (a few bytes each) from torch's generator or one that is given, and applied on the device of
the data. A `Corruption` can be kept and applied again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from torch import Tensor

from nnunetv2_unimrseg.config import Stage1Config, SubsetSamplingConfig
from nnunetv2_unimrseg.method.networks.unet import (
    Channels,
    as_channels,
    expand_to_channels,
    present_channels,
    usable_modalities,
)
from nnunetv2_unimrseg.modalities import MOST_LISTED_SUBSETS, incomplete_subsets


def draw_subsets(
    num_samples: int,
    num_modalities: int,
    sampling: SubsetSamplingConfig | None = None,
    *,
    complete_allowed: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw a random non-empty subset of the modalities for each sample.

    Args:
        num_samples: number of samples B.
        num_modalities: number of modalities C.
        sampling: 'by_size' makes all sizes equally likely, and then all subsets of a size, 'uniform' all subsets,
            'per_modality' drops each modality with `dropout_probability`; None is uniform.
        complete_allowed: whether the complete set may be drawn.
        generator: source of randomness; None is torch's default.

    Returns:
        `(B, C)` booleans on the CPU, True where a modality is available; no row is all False.
    """
    sampling = sampling or SubsetSamplingConfig(subset_sampling="uniform")
    if sampling.subset_sampling == "by_size":
        largest = num_modalities if complete_allowed else num_modalities - 1
        sizes = torch.randint(1, largest + 1, (num_samples, 1), generator=generator)
        return torch.rand(num_samples, num_modalities, generator=generator).argsort(1).argsort(1) < sizes
    dropped = 0.5 if sampling.subset_sampling == "uniform" else sampling.dropout_probability
    if dropped == 0 and not complete_allowed:
        raise ValueError("With dropout_probability 0 every draw is complete, so no incomplete subset can be drawn.")

    def draw(rows: int) -> Tensor:
        return torch.rand(rows, num_modalities, generator=generator) >= dropped

    available = draw(num_samples)
    while True:
        rejected = ~available.any(1)
        if not complete_allowed:
            rejected |= available.all(1)
        if not rejected.any():
            return available
        available[rejected] = draw(int(rejected.sum()))


class SubsetDeck:
    """Deals incomplete subsets from a shuffled deck, so that each comes up equally often.

    Where there are more than ten modalities the deck would be large, and subsets are drawn uniformly instead.

    Args:
        num_modalities: number of modalities, at least two.
        seed: of the order; None draws it from Python's generator.
    """

    def __init__(self, num_modalities: int, seed: int | None = None) -> None:
        self.num_modalities = num_modalities
        self._random = random.Random(random.getrandbits(64) if seed is None else seed)
        self._generator = torch.Generator().manual_seed(self._random.getrandbits(62))
        listed = 2**num_modalities - 1 <= MOST_LISTED_SUBSETS
        self._subsets = incomplete_subsets(num_modalities) if listed else []
        self._deck: list[tuple[bool, ...]] = []

    def deal(self, num_samples: int) -> Tensor:
        """Return the next incomplete subsets, `(num_samples, C)` booleans on the CPU."""
        if not self._subsets:
            return draw_subsets(num_samples, self.num_modalities, complete_allowed=False, generator=self._generator)
        dealt: list[tuple[bool, ...]] = []
        while len(dealt) < num_samples:
            if not self._deck:
                self._deck = self._random.sample(self._subsets, len(self._subsets))
            dealt.append(self._deck.pop())
        return torch.tensor(dealt)


@dataclass(frozen=True)
class Corruption:
    """One draw of modality shuffle, block masking and modality dropout for a batch (stage 1's input).

    Attributes:
        source: `(B, C)` integers, the channel whose image each channel shows; a permutation in every row.
        masked_blocks: `(B, C, ...)` booleans on the coarse grid of blocks, True where a block is masked.
        block_size: edges of a block in voxels, one an axis.
        available: `(B, C)` booleans, the *channels* that hold an image (after the shuffle).
    """

    source: Tensor
    masked_blocks: Tensor
    block_size: tuple[int, ...]
    available: Tensor

    def apply(self, x: Tensor, fill: float = 0.0) -> tuple[Tensor, Tensor]:
        """Corrupt `x` `(B, C, X, Y[, Z])`, normalised intensities, on its device.

        Args:
            x: complete patches; channels that hold NaN stay missing, wherever the shuffle moves them.
            fill: what a missing channel is filled with (0, or NaN to mark it for the network).

        Returns:
            The corrupted patches and `(B, C)` booleans of the channels that are available.
        """
        spatial = [1] * (x.ndim - 2)
        source = self.source.to(x.device, non_blocking=True)
        shuffled = torch.take_along_dim(x, source.view(*source.shape, *spatial), 1)
        masked = self.masked_blocks.to(x.device, non_blocking=True)
        for axis, edge in enumerate(self.block_size, start=2):
            masked = masked.repeat_interleave(edge, axis).narrow(axis, 0, x.shape[axis])
        available = self.available.to(x.device, non_blocking=True)
        available = usable_modalities(available, present_channels(shuffled))
        corrupted = shuffled.masked_fill(masked, 0.0)
        return torch.where(available.view(*available.shape, *spatial), corrupted, fill), available


def draw_corruption(
    shape: Sequence[int],
    config: Stage1Config,
    generator: torch.Generator | None = None,
    channels: Channels | None = None,
) -> Corruption:
    """Draw stage 1's corruption for a batch of `shape` `(B, C, X, Y[, Z])`, of which all C channels are images.

    Modalities change places as wholes, with others of as many channels. The blocks that are masked are the same in all
    channels of a modality.

    Args:
        shape: of the batch.
        config: probabilities and sizes.
        generator: source of randomness; None is torch's default.
        channels: the channels of each modality; None for one each.
    """
    batch, num_channels, *size = shape
    channels = as_channels(channels or num_channels)
    modalities = len(channels)
    ordered = torch.arange(num_channels).expand(batch, num_channels)
    permuted = _permute_channels(torch.rand(batch, modalities, generator=generator), channels)
    shuffle = torch.rand(batch, 1, generator=generator) < config.shuffle_probability
    block_size = tuple(max(1, min(config.mask_block_size, extent // 2)) for extent in size)
    grid = [math.ceil(extent / edge) for extent, edge in zip(size, block_size, strict=True)]
    blocks = math.prod(grid)
    order = torch.rand(batch, modalities, blocks, generator=generator).argsort(-1)
    masked = order < round(config.mask_ratio * blocks)
    mask = torch.rand(batch, 1, 1, generator=generator) < config.mask_probability
    return Corruption(
        source=torch.where(shuffle, permuted, ordered),
        masked_blocks=expand_to_channels(masked & mask, channels).reshape(batch, num_channels, *grid),
        block_size=block_size,
        available=expand_to_channels(draw_subsets(batch, modalities, config, generator=generator), channels),
    )


def _permute_channels(draws: Tensor, channels: Channels) -> Tensor:
    """Return `(B, C)` channel numbers, where modalities of as many channels stand in the order of `draws` `(B, M)`."""
    permuted = torch.empty(len(draws), sum(map(len, channels)), dtype=torch.long)
    for size in sorted({len(of_modality) for of_modality in channels}):
        alike = [number for number, of_modality in enumerate(channels) if len(of_modality) == size]
        places = torch.tensor([channels[number] for number in alike])
        permuted[:, places.flatten()] = places[draws[:, alike].argsort(1)].flatten(1)
    return permuted


class ModalityCorruptionTransform(ImageOnlyTransform):
    """Stage 1's corruption of one sample `(C, X, Y[, Z])` in a batchgeneratorsv2 pipeline.

    Missing channels become NaN, which later transforms and the network understand. `get_parameters` draws, `apply`
    applies, so a draw can be recorded and replayed. With shuffle and masking at probability 0 it is modality dropout.

    Args:
        config: probabilities and sizes (stage 1's section of the configuration).
        channels: the channels of each modality; None for one each.
    """

    def __init__(self, config: Stage1Config, channels: Channels | None = None) -> None:
        super().__init__()
        self.config = config
        self.channels = channels

    def get_parameters(self, **data_dict: Any) -> dict[str, Corruption]:
        """Draw the corruption for the sample `data_dict["image"]`."""
        return {"corruption": draw_corruption((1, *data_dict["image"].shape), self.config, channels=self.channels)}

    def _apply_to_image(self, img: Tensor, corruption: Corruption) -> Tensor:
        return corruption.apply(img[None], fill=math.nan)[0][0]


class KeepMissingTransform(BasicTransform):
    """Other transforms of one sample, through which the channels of missing modalities stay all NaN.

    The others see zeros there. So no statistic of theirs is spoiled, and a patch that lies wholly outside the mask of
    normalisation, where nnU-Net sets zeros, does not make a missing modality look available.

    Args:
        transform: nnU-Net's training augmentation; channels that it appends, for a cascade, are no images.
    """

    def __init__(self, transform: BasicTransform) -> None:
        super().__init__()
        self.transform = transform

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """Transform a sample whose `image` is `(C, X, Y[, Z])`."""
        (missing,) = (~present_channels(data_dict["image"][None])).nonzero(as_tuple=True)[1:]
        if len(missing) == 0:
            return dict(self.transform(**data_dict))
        image = data_dict["image"].clone()
        image[missing] = 0
        transformed: dict[str, Any] = self.transform(**{**data_dict, "image": image})
        transformed["image"][missing] = math.nan
        return transformed
