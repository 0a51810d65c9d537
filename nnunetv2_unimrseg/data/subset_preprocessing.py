"""Preprocessing one case for many subsets of its modalities, each part of the work once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor, planned_modalities
from nnunetv2_unimrseg.modalities import Subset
from nnunetv2_unimrseg.nnunet.types import DatasetJson, ImageProperties


def preprocess_subsets(
    image: np.ndarray,
    properties: ImageProperties,
    subsets: Mapping[str, Subset],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: DatasetJson,
) -> Iterator[tuple[str, Tensor, ImageProperties]]:
    """Preprocess a case for each subset, bit for bit as if the other files were absent.

    A missing modality can only influence the crop and the mask of the normalisation, which are both made from the
    nonzero voxels of all channels. Subsets for which these are the same share one preprocessing.

    Args:
        image: the raw image, (C, X, Y, Z), every subset's modalities not constant.
        properties: the reader's.
        subsets: by name.
        plans_manager: of the model.
        configuration_manager: of the model.
        dataset_json: of the model.

    Yields:
        Name, preprocessed image (C, X, Y, Z) with NaN in missing channels, and properties of each subset.
    """
    preprocessor = UniMRSegPreprocessor(verbose=False)
    masked = configuration_manager.use_mask_for_norm
    modalities = planned_modalities(configuration_manager, dataset_json)
    channels = {name: modalities.expand(subset) for name, subset in subsets.items()}
    for group in _group_by_crop(image, channels, masked):
        together = np.logical_or.reduce([channels[name] for name in group])
        prepared, _, of_case = preprocessor.run_case_npy(
            _only(image, together), None, properties.copy(), plans_manager, configuration_manager, dataset_json
        )
        for name in group:
            data = prepared.copy() if len(group) > 1 else prepared
            data[~np.array(channels[name])] = np.nan
            yield name, torch.from_numpy(data), {**of_case, "available_modalities": list(subsets[name])}


def _only(image: np.ndarray, available: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(image)
    kept[available] = image[available]
    return kept


def _group_by_crop(
    image: np.ndarray, channels: Mapping[str, Sequence[bool]], masked: Sequence[bool]
) -> list[list[str]]:
    """Group the subsets that have the same crop and, where one of their normalisers uses it, the same mask."""
    nonzero = image != 0
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, chosen in channels.items():
        mask = create_nonzero_mask(nonzero[np.array(chosen)])
        box = tuple(map(tuple, get_bbox_from_mask(mask)))
        needs_mask = any(uses and present for uses, present in zip(masked, chosen, strict=True))
        groups.setdefault((box, np.packbits(mask).tobytes() if needs_mask else None), []).append(name)
    return list(groups.values())
