"""The planned U-Net, made aware of missing modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from nnunetv2_unimrseg.config import AdaptationConfig, Stage3Config
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.contrast import pooled_statistics
from nnunetv2_unimrseg.method.networks.adapter import ReverseAttentionAdapter

if TYPE_CHECKING:
    from dynamic_network_architectures.building_blocks.plain_conv_encoder import PlainConvEncoder
    from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder


def usable_modalities(wanted: Tensor, present: Tensor) -> Tensor:
    """Return which modalities to use: the wanted ones that are present, or all present ones where that leaves none.

    A case may lack the only modality of the subset that it is given, and a patch without any image teaches nothing.

    Args:
        wanted, present: `(B, M)` booleans.
    """
    both = wanted & present
    return torch.where(both.any(1, keepdim=True), both, present)


def _last_norm(stage: nn.Module, norm_op: type[nn.Module]) -> nn.Module:
    """Return the last normalisation on the main path of an encoder stage."""
    norms = [module for name, module in stage.named_modules() if isinstance(module, norm_op) and "skip" not in name]
    return norms[-1]


Channels = Sequence[Sequence[int]]
"""The channel numbers of each of the M modalities; together they are the C image channels, each once."""


def as_channels(modalities: Channels | int) -> Channels:
    """Return the channels of modalities; a number stands for that many of one channel each."""
    return tuple((channel,) for channel in range(modalities)) if isinstance(modalities, int) else modalities


def present_channels(x: Tensor) -> Tensor:
    """Return which channels of `x` `(B, C, X, Y[, Z])` hold no NaN, the sign of a missing one: `(B, C)` booleans."""
    return ~torch.isnan(x).any(dim=tuple(range(2, x.ndim)))


def present_modalities(x: Tensor, channels: Channels) -> Tensor:
    """Return which modalities of `x` `(B, C, X, Y[, Z])` hold no NaN in any of their channels: `(B, M)` booleans."""
    present = present_channels(x)
    if all(len(of_modality) == 1 for of_modality in channels):
        return present
    return torch.stack([present[:, list(of_modality)].all(1) for of_modality in channels], 1)


def expand_to_channels(modalities: Tensor, channels: Channels) -> Tensor:
    """Repeat what is said of each modality, `(B, M, ...)`, for each of its channels: `(B, C, ...)`."""
    if all(len(of_modality) == 1 for of_modality in channels):
        return modalities
    owners = {channel: number for number, of_modality in enumerate(channels) for channel in of_modality}
    return modalities[:, [owners[channel] for channel in range(len(owners))]]


def zero_missing(x: Tensor, channels: Channels | int, available: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Put zeros into all channels of missing modalities, and say which are available.

    Args:
        x: `(B, C, X, Y[, Z])`, normalised intensities; image channels come first (a cascade appends label channels). A
            modality that holds any NaN is missing.
        channels: the image channels of each modality, or the number of modalities of one channel each.
        available: `(B, M)` booleans: modalities that are missing besides the NaN ones are False. A sample that would
            have none left keeps all that it has.

    Returns:
        `x` with zeros in missing channels, and the `(B, M)` booleans of what is available.
    """
    channels = as_channels(channels)
    num_images = sum(map(len, channels))
    present = present_modalities(x[:, :num_images], channels)
    available = present if available is None else usable_modalities(available, present)
    kept, extra = expand_to_channels(available, channels), x.shape[1] - num_images
    kept = torch.cat((kept, kept.new_ones(x.shape[0], extra)), 1) if extra else kept
    return torch.where(kept.view(*kept.shape, *[1] * (x.ndim - 2)), x, 0), available


class MissingModalityUNet(nn.Module):
    """nnU-Net's planned U-Net (plain or residual encoder, 2D or 3D) for inputs that may lack modalities.

    Encoder and decoder are the planned network's own modules, under their stock names, so a network without adapters
    has the keys and shapes of a stock nnU-Net checkpoint.

    Args:
        unet: what the plans build: has `encoder` (with `stages`) and `decoder`.
        channels: the image channels of each modality, or the number of modalities of one channel each.
        adapters: whether there are reverse attention adapters after the encoder's stages.
        settings: the adapters' form (first stage, window, attention, knowledge of the modalities, gradients); None is
            the default.

    Raises:
        UserError: where the encoder does not have the stage of the first adapter.
    """

    encoder: PlainConvEncoder | ResidualEncoder
    decoder: UNetDecoder
    section: ClassVar[str] = "stage3"
    """Section of the configuration that describes the adapters."""

    def __init__(
        self, unet: nn.Module, channels: Channels | int, *, adapters: bool, settings: AdaptationConfig | None = None
    ) -> None:
        super().__init__()
        self.channels = as_channels(channels)
        self.num_modalities = len(self.channels)
        self.encoder = unet.encoder
        self.decoder = unet.decoder
        self.encoder_is_frozen = False
        settings = settings or Stage3Config()
        self.gradients_through_encoder = settings.gradients_through_encoder
        self.first_adapter = settings.adapter_first_stage
        self._statistics: list[Tensor] | None = None
        for stage in self.encoder.stages:
            _last_norm(stage, self.encoder.norm_op).register_forward_pre_hook(self._note_statistics)
        self.adapters = self._build_adapters(settings) if adapters else None

    def _build_adapters(self, settings: AdaptationConfig) -> nn.ModuleList:
        encoder = self.encoder
        stem = getattr(encoder, "stem", None)
        first_conv = next(module for module in encoder.modules() if isinstance(module, encoder.conv_op))
        entering = [first_conv.in_channels if stem is None else stem.output_channels, *encoder.output_channels[:-1]]
        shapes = list(zip(entering, encoder.output_channels, encoder.strides, strict=True))
        if self.first_adapter > max(1, len(shapes) - 1):  # an encoder of full resolution alone may go without
            raise UserError(
                f"{self.section}.adapter_first_stage = {self.first_adapter}, but the planned encoder has the stages 0 "
                f"to {len(shapes) - 1}. Set it to one of them with `unimrseg configure`."
            )
        return nn.ModuleList(
            ReverseAttentionAdapter(
                encoder,
                *shape,
                settings.adapter_window,
                num_modalities=self.num_modalities if settings.adapters_know_modalities else None,
                reverse_attention=settings.reverse_attention,
            )
            for shape in shapes[self.first_adapter :]
        )

    def start_as_identity(self) -> None:
        """Let the adapters add nothing; their first step changes that."""
        for adapter in self.adapters or ():
            cast(ReverseAttentionAdapter, adapter).start_as_identity()

    def _adapter_after(self, stage: int) -> ReverseAttentionAdapter | None:
        has_one = self.adapters is not None and stage >= self.first_adapter
        modules: Any = self.adapters  # for the type checker a ModuleList holds just any nn.Module
        adapter: ReverseAttentionAdapter | None = modules[stage - self.first_adapter] if has_one else None
        return adapter

    def _note_statistics(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if self._statistics is not None:
            self._statistics.append(pooled_statistics(inputs[0]))

    def freeze_encoder(self) -> None:
        """Stop the encoder from learning: no weight gradients, and evaluation mode also after `train()`."""
        self.encoder_is_frozen = True
        self.encoder.requires_grad_(False)
        self.encoder.eval()

    def train(self, mode: bool = True) -> MissingModalityUNet:
        """Switch between training and evaluation; a frozen encoder stays in evaluation."""
        super().train(mode)
        if self.encoder_is_frozen:
            self.encoder.eval()
        return self

    def forward(
        self,
        x: Tensor,
        available: Tensor | None = None,
        *,
        skip_adapters: bool = False,
        return_features: bool = False,
        return_statistics: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], list[Tensor]]:
        """Segment a batch of patches of which any may lack modalities.

        Args:
            x: `(B, C, X, Y[, Z])`, normalised intensities; a modality that holds any NaN is missing.
            available: `(B, num_modalities)` booleans of the modalities to use; None uses all that are not NaN.
            skip_adapters: use the plain encoder whatever is missing (stage 3's teacher).
            return_features: also return the output of every encoder stage, highest resolution first.
            return_statistics: also return, for every encoder stage, `pooled_statistics` of what enters its last
                normalisation, which makes all samples alike.

        Returns:
            Logits `(B, num_classes, X, Y[, Z])`, a list of them (full resolution first) under deep supervision; with
            `return_features` or `return_statistics` a pair of that and that list.
        """
        x, available = zero_missing(x, self.channels, available)
        features, returned = self._encode_with_statistics(x, ~available, skip_adapters, return_statistics)
        logits: Tensor | list[Tensor] = self.decoder(features)
        return (logits, returned) if return_features or return_statistics else logits

    def encoder_statistics(self, x: Tensor, available: Tensor | None = None) -> list[Tensor]:
        """Return what `forward` does with `return_statistics`, without the logits."""
        x, available = zero_missing(x, self.channels, available)
        return self._encode_with_statistics(x, ~available, skip_adapters=False, return_statistics=True)[1]

    def _encode_with_statistics(
        self, x: Tensor, missing: Tensor, skip_adapters: bool, return_statistics: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return what `encode` does, and the statistics; without `return_statistics` twice the same."""
        self._statistics = [] if return_statistics else None
        features = self.encode(x, missing, skip_adapters=skip_adapters)
        statistics, self._statistics = self._statistics, None
        return features, features if statistics is None else statistics

    def encode(self, x: Tensor, missing: Tensor, *, skip_adapters: bool = False) -> list[Tensor]:
        """Return the output of every encoder stage, highest resolution first.

        Args:
            x, missing: an input with zeros in the channels of missing modalities, and which these are, `(B, M)`.
            skip_adapters: see `forward`.
        """
        use_adapters = self.adapters is not None and not skip_adapters
        if use_adapters and not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            use_adapters = bool(missing.any())
        stem = getattr(self.encoder, "stem", None)
        if stem is not None:
            x = stem(x)
        flows = self.gradients_through_encoder or not self.encoder_is_frozen
        features = []
        for index, stage in enumerate(self.encoder.stages):
            current = stage(x if flows else x.detach())
            adapter = self._adapter_after(index) if use_adapters else None
            x = current if adapter is None else adapter(x, current, missing)
            features.append(x)
        return features

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Return nnU-Net's memory measure for one sample of `input_size` voxels, adapters included."""
        total = self.encoder.compute_conv_feature_map_size(input_size)
        total += self.decoder.compute_conv_feature_map_size(input_size)
        size = list(input_size)
        for index, stride in enumerate(self.encoder.strides):
            size = [extent // step for extent, step in zip(size, stride, strict=True)]
            adapter = self._adapter_after(index)
            total += 0 if adapter is None else adapter.compute_conv_feature_map_size(size)
        return int(total)
