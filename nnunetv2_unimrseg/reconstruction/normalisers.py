"""Normalised units and raw intensities: nnU-Net's normalisers, inverted with the training set's average parameters.

| normaliser | inverse | outside the crop, normalised |
|---|---|---|
| `CTNormalization` | x std + mean of the plans' foreground, inside the plans' clip range | clip range's lower end |
| `ZScoreNormalization` with mask | x std + mean inside the mask, averages over the training cases; 0 outside | 0 |
| `ZScoreNormalization` | the same, without mask | the lowest value of the reconstruction |
| `RescaleTo01Normalization` | x (max - min) + min, averages over the training cases | 0 |
| `RGBTo01Normalization` | 255 x | 0 |
| `NoNormalization` | x | 0 |

The mask is nnU-Net's: the nonzero voxels, holes filled, of the images that the case has. Voxels outside the crop get
the inverse of the value in the last column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_unimrseg.errors import UserError

CT, Z_SCORE, NONE = "CTNormalization", "ZScoreNormalization", "NoNormalization"
TO_01, RGB_TO_01 = "RescaleTo01Normalization", "RGBTo01Normalization"
INVERTIBLE = (CT, Z_SCORE, NONE, TO_01, RGB_TO_01)


@dataclass(frozen=True)
class Normaliser:
    """How the plans normalise one channel.

    Attributes:
        name: nnU-Net's class.
        masked: whether statistics are taken, and values changed, only inside the nonzero mask.
        foreground: the plans' `mean`, `std`, `percentile_00_5` and `percentile_99_5` of the channel.
    """

    name: str
    masked: bool
    foreground: Mapping[str, float]

    @property
    def needs_statistics(self) -> bool:
        """Whether the inverse needs statistics of the training images."""
        return self.name in (Z_SCORE, TO_01)

    @property
    def outside(self) -> float | None:
        """Normalised value outside the crop; None for the lowest value of the reconstruction."""
        if self.name == CT:
            low, mean, std = (self.foreground[key] for key in ("percentile_00_5", "mean", "std"))
            return (low - mean) / max(std, 1e-8)
        unknown = self.name not in INVERTIBLE or (self.name == Z_SCORE and not self.masked)
        return None if unknown else 0.0

    def invert(
        self, image: np.ndarray, mask: np.ndarray | None = None, statistics: Mapping[str, float] | None = None
    ) -> np.ndarray:
        """Map normalised values to raw intensities.

        Args:
            image: any shape.
            mask: where the masked z-score changed values; the same shape.
            statistics: what `training_intensities` returns for the channel, where `needs_statistics`.

        Raises:
            UserError: for a normaliser that is not nnU-Net's.
        """
        raw = image
        if self.name == CT:
            low, high = self.foreground["percentile_00_5"], self.foreground["percentile_99_5"]
            raw = np.clip(image * self.foreground["std"] + self.foreground["mean"], low, high)
        elif self.name == Z_SCORE:
            assert statistics is not None
            raw = image * statistics["std"] + statistics["mean"]
            raw = raw if mask is None or not self.masked else np.where(mask, raw, 0)
        elif self.name == TO_01:
            assert statistics is not None
            low, high = statistics["minimum"], statistics["maximum"]
            raw = np.clip(image, 0, 1) * (high - low) + low
        elif self.name == RGB_TO_01:
            raw = np.clip(image, 0, 1) * 255
        elif self.name != NONE:
            raise UserError(f"UniMRSeg cannot invert {self.name}; it can invert {', '.join(INVERTIBLE)}.")
        return raw


def read_normalisers(plans_manager: PlansManager, configuration_manager: ConfigurationManager) -> list[Normaliser]:
    """Return how the plans normalise each channel."""
    foreground = plans_manager.foreground_intensity_properties_per_channel
    names, masked = configuration_manager.normalization_schemes, configuration_manager.use_mask_for_norm
    return [
        Normaliser(name, bool(uses_mask), foreground.get(str(channel), {}))
        for channel, (name, uses_mask) in enumerate(zip(names, masked, strict=True))
    ]


def check_invertible(normalisers: Mapping[str, Normaliser]) -> None:
    """Check that each channel's normaliser can be inverted.

    Args:
        normalisers: by name of the modality.

    Raises:
        UserError: names every channel whose normaliser cannot be inverted.
    """
    unknown = {name: entry.name for name, entry in normalisers.items() if entry.name not in INVERTIBLE}
    if unknown:
        listed = ", ".join(f"{name} ({normaliser})" for name, normaliser in unknown.items())
        raise UserError(
            f"Raw intensities cannot be given for {listed}: UniMRSeg cannot invert that normaliser (it can invert "
            f"{', '.join(INVERTIBLE)}). Leave out --intensities, for normalised units."
        )
