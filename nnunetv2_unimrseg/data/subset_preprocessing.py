"""Preprocessing one case for many subsets of its modalities, each part of the work once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor
from nnunetv2_unimrseg.modalities import Subset


def preprocess_subsets(
    image: np.ndarray,
    properties: dict,
    subsets: Mapping[str, Subset],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
) -> Iterator[tuple[str, Tensor, dict]]:
    """Preprocess a case once for each subset, bit for bit as if the other files were absent.

    What a missing modality can influence is the crop and the mask of the normalisation, both made from the nonzero
    voxels of all channels. Subsets for which these are the same share one preprocessing.

    Args:
        image: the raw image, (C, X, Y, Z), every subset's channels not constant.
        properties: the reader's.
        subsets: by name.
        plans_manager: of the model, like the two that follow.
        configuration_manager: see above.
        dataset_json: see above.

    Yields:
        Name, preprocessed image (C, X, Y, Z) with NaN in missing channels, and properties of each subset.
    """
    preprocessor = UniMRSegPreprocessor(verbose=False)
    masked = configuration_manager.use_mask_for_norm
    for group in _sharing(image, subsets, masked):
        together = np.logical_or.reduce([subsets[name] for name in group])
        prepared, _, of_case = preprocessor.run_case_npy(
            _only(image, together), None, dict(properties), plans_manager, configuration_manager, dataset_json
        )
        for name in group:
            data = prepared.copy() if len(group) > 1 else prepared
            data[~np.array(subsets[name])] = np.nan
            yield name, torch.from_numpy(data), {**of_case, "available_modalities": list(subsets[name])}


def _only(image: np.ndarray, available: np.ndarray) -> np.ndarray:
    kept = np.zeros_like(image)
    kept[available] = image[available]
    return kept


def _sharing(image: np.ndarray, subsets: Mapping[str, Subset], masked: Sequence[bool]) -> list[list[str]]:
    """Group the subsets whose crop, and mask where one of their normalisers has one, are the same."""
    nonzero = image != 0
    groups: dict[tuple, list[str]] = {}
    for name, subset in subsets.items():
        mask = create_nonzero_mask(nonzero[np.array(subset)])
        box = tuple(map(tuple, get_bbox_from_mask(mask)))
        needs_mask = any(uses and present for uses, present in zip(masked, subset, strict=True))
        groups.setdefault((box, np.packbits(mask).tobytes() if needs_mask else None), []).append(name)
    return list(groups.values())
