"""Parameters and multiply-adds of networks, counted on the meta device: nothing is allocated or computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .cost_measures import Plans, prediction_networks


@dataclass(frozen=True)
class Counts:
    """What a network consists of and what predicting one patch takes.

    Attributes:
        parameters: of the whole network.
        adapter_parameters: of the adapters among them.
        complete, incomplete: multiply-adds for a complete patch and for one that lacks a modality.
    """

    parameters: int
    adapter_parameters: int
    complete: int
    incomplete: int


def multiply_adds(network: Any, *arguments: Any, **options: Any) -> int:
    """Return the multiply-adds of one call of a network (convolutions and matrix products)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(*arguments, **options)
    return counter.get_total_flops() // 2


def count_network(network: Any, patch: Any) -> Counts:
    """Count a network of this package, which may lie on the meta device, for one `patch` `(1, C, X, Y[, Z])` there."""
    adapters = sum(parameter.numel() for parameter in network.adapters.parameters()) if network.adapters else 0
    nothing = patch.new_zeros((1, network.num_modalities), dtype=bool)
    return Counts(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        adapter_parameters=adapters,
        complete=multiply_adds(network, patch, nothing, skip_adapters=True),
        incomplete=multiply_adds(network, patch, nothing),
    )


def count_plans(plans: Plans) -> tuple[Counts, Counts]:
    """Return the counts of stock nnU-Net's network (no adapters) and of stage 3's, without allocating either."""
    import torch

    with torch.device("meta"):
        networks = prediction_networks(plans)
        patch = torch.empty(plans.patch_shape)
        parameters = sum(parameter.numel() for parameter in networks["stock"].parameters())
        work = multiply_adds(networks["stock"], patch)
        return Counts(parameters, 0, work, work), count_network(networks["stage3"], patch)


def reference_plans(plans: Plans, network_class: str, blocks: Mapping[str, Sequence[int]]) -> Plans:
    """Return plans of a 128 x 128 x 128 patch with four modalities and four classes, six stages of 32 to 320 features.

    This is what nnU-Net plans for BraTS, and the size for which the published code's size and cost are known.

    Args:
        plans: give everything that does not shape the network.
        network_class: `PlainConvUNet` or `ResidualEncoderUNet`.
        blocks: the arguments that say how many convolutions or blocks a stage has.
    """
    stages = 6
    arch_kwargs = {
        "n_stages": stages,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **blocks,
    }
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{network_class}",
        "arch_kwargs": arch_kwargs,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    changed = plans.with_modalities(4).changed(
        architecture=architecture, patch_size=[128, 128, 128], previous_stage=None, unimrseg={}
    )
    labels = {"background": 0, "first": 1, "second": 2, "third": 3}
    return replace(changed, dataset_json={**changed.dataset_json, "labels": labels, "regions_class_order": None})
