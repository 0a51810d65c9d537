"""Building the network that the plans describe."""

from __future__ import annotations

from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunetv2_unimrseg.config import PLANS_KEY, UniMRSegConfig
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.networks.retrofit import RetrofitUNet
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet
from nnunetv2_unimrseg.nnunet.modalities_in_plans import planned_channels


def build_network(
    configuration_manager: ConfigurationManager,
    num_input_channels: int,
    num_output_channels: int,
    deep_supervision: bool,
    *,
    adapters: bool,
    keep_complete: bool = False,
) -> MissingModalityUNet:
    """Build the plans' U-Net, wrapped so that it accepts inputs that lack modalities.

    Args:
        configuration_manager: the plans' configuration (architecture, normalisation, modalities, `unimrseg` section).
        num_input_channels: image channels, and one-hot label channels for a cascade.
        num_output_channels: segmentation heads, or image channels for reconstruction.
        deep_supervision: whether the decoder returns a list of logits.
        adapters: whether to add adapters, of the form that the section `stage3` says.
        keep_complete: whether what learns stands beside the U-Net, as the section `retrofit` says.

    Raises:
        UserError: when the planned network is not a U-Net with an encoder of stages and a decoder.
    """
    unet = get_network_from_plans(
        configuration_manager.network_arch_class_name,
        configuration_manager.network_arch_init_kwargs,
        configuration_manager.network_arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        allow_init=True,
        deep_supervision=deep_supervision,
    )
    if not (hasattr(unet, "decoder") and hasattr(getattr(unet, "encoder", None), "stages")):
        raise UserError(
            f"UniMRSeg needs a U-Net with 'encoder.stages' and 'decoder'; these plans build "
            f"{configuration_manager.network_arch_class_name}. Use plans for PlainConvUNet or ResidualEncoderUNet."
        )
    config = UniMRSegConfig.from_dict(configuration_manager.configuration.get(PLANS_KEY, {}))
    channels = planned_channels(configuration_manager.configuration)
    network = (
        RetrofitUNet(unet, channels, config.retrofit)
        if keep_complete
        else MissingModalityUNet(unet, channels, adapters=adapters and config.stage3.adapters, settings=config.stage3)
    )
    if network.adapters is not None:
        network.adapters.apply(unet.initialize)
        network.start_as_identity()
    return network
