"""What the three stages hold in memory, in nnU-Net's measure.

nnU-Net estimates the memory of a training step from one plain number: the values in all feature maps that the
convolutions of the network make of one sample. Its planners know which number fits which card. Here that number is
taken of one *view* of a sample; stage 3 looks at several views of each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.method.networks.unet import Channels, MissingModalityUNet, as_channels


@dataclass(frozen=True)
class ViewCost:
    """Values in the feature maps of one view of one sample.

    Args:
        plain: through the network without adapters.
        adapted: through the network with adapters.
        features: values in the outputs of the encoder's stages alone.
    """

    plain: int
    adapted: int
    features: int


def view_cost(
    architecture: Mapping[str, Any],
    patch_size: Sequence[int],
    channels: Channels | int,
    num_classes: int,
    settings: Mapping[str, Any],
) -> ViewCost:
    """Measure the planned network, without allocating its weights.

    Args:
        architecture: the entry `architecture` of a configuration.
        patch_size: voxels an axis.
        channels: the image channels of each modality, or the number of modalities of one channel each.
        num_classes: number of segmentation heads.
        settings: the entry `unimrseg` of the configuration.
    """
    stage3 = UniMRSegConfig.from_dict(settings).stage3
    with torch.device("meta"):
        unet = get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            sum(map(len, as_channels(channels))),
            num_classes,
            allow_init=False,
        )
        network = MissingModalityUNet(unet, channels, adapters=stage3.adapters, settings=stage3)
    size = tuple(int(extent) for extent in patch_size)
    parts = (network.encoder, network.decoder)
    return ViewCost(
        plain=int(sum(part.compute_conv_feature_map_size(size) for part in parts)),
        adapted=network.compute_conv_feature_map_size(size),
        features=_values_in_features(architecture["arch_kwargs"], size),
    )


def _values_in_features(arch_kwargs: Mapping[str, Any], patch_size: Sequence[int]) -> int:
    total, size = 0, list(patch_size)
    for channels, strides in zip(arch_kwargs["features_per_stage"], arch_kwargs["strides"], strict=True):
        size = [extent // step for extent, step in zip(size, strides, strict=True)]
        total += channels * math.prod(size)
    return total


def stage_costs(cost: ViewCost) -> dict[str, int]:
    """Return what a training step of each stage holds, per sample of the batch.

    Stage 1 sees one view, stage 2 one, or two of half of the batch, stage 3 several one after another. It also holds
    the complete view's features, which teach the others. They count half: nnU-Net's measure stands for a convolution's
    output and what follows it in the backward pass (4.6 bytes a value under half precision, measured), kept features
    are their 2 bytes alone.

    Args:
        cost: of one view.
    """
    return {
        "stage1": cost.plain,
        "stage2": cost.plain,
        "stage3": cost.adapted + cost.features // 2,
    }
