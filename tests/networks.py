"""Small U-Nets as plans build them, for unit tests."""

from __future__ import annotations

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from nnunetv2_unimrseg.method.networks.retrofit import RetrofitUNet
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet

KINDS = {"plain": PlainConvUNet, "residual": ResidualEncoderUNet}


def stock_unet(
    kind: str = "plain",
    dims: int = 3,
    *,
    features: tuple[int, ...] = (8, 16, 24),
    channels: int = 4,
    classes: int = 3,
    anisotropic: bool = False,
    nonlin: type[nn.Module] = nn.LeakyReLU,
    norm: type[nn.Module] | None = None,
    deep_supervision: bool = False,
) -> nn.Module:
    stages = len(features)
    kernel, stride = [3] * dims, [2] * dims
    kernels, strides = [kernel] * stages, [[1] * dims] + [stride] * (stages - 1)
    if anisotropic:
        kernels = [[1, *kernel[1:]], *kernels[1:]]
        strides = [strides[0], [1, *stride[1:]], *strides[2:]]
    conv, instance_norm = (nn.Conv3d, nn.InstanceNorm3d) if dims == 3 else (nn.Conv2d, nn.InstanceNorm2d)
    blocks = (
        {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
        if kind == "plain"
        else {"n_blocks_per_stage": (1, 3, 4, 6, 6, 6)[:stages], "n_conv_per_stage_decoder": [1] * (stages - 1)}
    )
    return KINDS[kind](
        input_channels=channels, n_stages=stages, features_per_stage=list(features), conv_op=conv,
        kernel_sizes=kernels, strides=strides, num_classes=classes, conv_bias=True,
        norm_op=norm or instance_norm, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nonlin, nonlin_kwargs={"inplace": True}, deep_supervision=deep_supervision, **blocks,
    )  # fmt: skip


def unet(kind: str = "plain", dims: int = 3, *, adapters: bool = True, **options: object) -> MissingModalityUNet:
    modalities = options.pop("modalities", 4)
    torch.manual_seed(0)
    return MissingModalityUNet(stock_unet(kind, dims, **options), modalities, adapters=adapters)


def retrofit_unet(kind: str = "plain", dims: int = 3, **options: object) -> RetrofitUNet:
    torch.manual_seed(0)
    return RetrofitUNet(stock_unet(kind, dims, **options), 4)


def train_adapters(network: MissingModalityUNet) -> None:
    """Give the adapters weights as if they had learned."""
    for adapter in network.adapters:
        nn.init.normal_(adapter.scale)
        adapter.project.reset_parameters()


def images(dims: int = 3, batch: int = 2, channels: int = 4, edge: int = 16) -> torch.Tensor:
    return torch.randn((batch, channels, *[edge] * dims), generator=torch.Generator().manual_seed(1))


def trained_network(section: str) -> MissingModalityUNet:
    """Return the network of a stage or of the retrofit, with deep supervision and adapters that do something."""
    if section == "retrofit":
        network: MissingModalityUNet = retrofit_unet(deep_supervision=True)
    else:
        network = unet(adapters=section == "stage3", deep_supervision=True)
    if network.adapters is not None:
        train_adapters(network)
        network.freeze_encoder()
    return network
