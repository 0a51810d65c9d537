"""A trained nnU-Net with what incomplete inputs need beside it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from nnunetv2_unimrseg.config import RetrofitConfig
from nnunetv2_unimrseg.method.networks.unet import Channels, MissingModalityUNet, zero_missing

if TYPE_CHECKING:
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder


class RetrofitUNet(MissingModalityUNet):
    """Gives complete samples what the planned U-Net gives, bit for bit, whatever is learned for incomplete ones.

    Encoder and decoder are the planned network's, frozen. Samples that lack a modality pass the encoder with the
    adapters and then `incomplete_decoder`, a decoder of the same form; only these two learn.

    Args:
        unet: what the plans build: has `encoder` (with `stages`) and `decoder`.
        channels: the image channels of each modality; a number means that each channel is a modality.
        settings: the adapters' form.

    Raises:
        UserError: where the encoder does not have the stage of the first adapter.
    """

    incomplete_decoder: UNetDecoder
    section: ClassVar[str] = "retrofit"

    def __init__(self, unet: nn.Module, channels: Channels | int, settings: RetrofitConfig | None = None) -> None:
        super().__init__(unet, channels, adapters=True, settings=settings or RetrofitConfig())
        self.incomplete_decoder = _copy_without_encoder(self.decoder)
        self.freeze_encoder()
        self.decoder.requires_grad_(False)
        self.decoder.eval()

    def train(self, mode: bool = True) -> RetrofitUNet:
        """Switch what learns between training and evaluation; the rest stays in evaluation."""
        super().train(mode)
        self.decoder.eval()
        return self

    def forward(
        self,
        x: Tensor,
        available: Tensor | None = None,
        *,
        skip_adapters: bool = False,
        return_features: bool = False,
        return_statistics: bool = False,
        all_incomplete: bool = False,
    ) -> Tensor | list[Tensor] | tuple[Tensor | list[Tensor], list[Tensor]]:
        """Segment a batch of patches of which any may lack modalities; see `MissingModalityUNet.forward`.

        Args:
            x, available, return_features, return_statistics: as there.
            skip_adapters: treat every sample as the trained nnU-Net would, with zeros for what is missing.
            all_incomplete: the caller knows that every sample lacks a modality. The result is the same, and a compiled
                network then has one decoder to compute instead of two.
        """
        x, available = zero_missing(x, self.channels, available)
        features, returned = self._encode_with_statistics(x, ~available, skip_adapters, return_statistics)
        if skip_adapters:
            logits = self.decoder(features)
        elif all_incomplete:
            logits = self.incomplete_decoder(features)
        else:
            logits = self._decode_each(features, available.all(1))
        return (logits, returned) if return_features or return_statistics else logits

    def _decode_each(self, features: list[Tensor], complete: Tensor) -> Tensor | list[Tensor]:
        """Decode each sample with its own decoder; `complete` is `(B,)`."""
        if not torch.compiler.is_compiling():
            if complete.all():
                return cast(Tensor | list[Tensor], self.decoder(features))
            if not complete.any():
                return cast(Tensor | list[Tensor], self.incomplete_decoder(features))
        kept, learned = self.decoder(features), self.incomplete_decoder(features)
        if isinstance(kept, Tensor):
            return _choose(complete, kept, learned)
        return [_choose(complete, *scale) for scale in zip(kept, learned, strict=True)]


def _choose(complete: Tensor, kept: Tensor, learned: Tensor) -> Tensor:
    return torch.where(complete.view(-1, *[1] * (kept.ndim - 1)), kept, learned)


def _copy_without_encoder(decoder: UNetDecoder) -> UNetDecoder:
    """Copy nnU-Net's decoder, but for the reference to its encoder, which it needs for its memory measure only."""
    encoder = decoder.encoder
    own = copy.deepcopy(decoder, {id(encoder): encoder})
    del own.encoder
    return own
