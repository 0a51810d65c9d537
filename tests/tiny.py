"""A tiny planned dataset for unit tests: plans, dataset.json, images and files, without running nnU-Net's commands."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

NAMES = ("CT", "PET", "T1", "T2")
NORMALISERS = ("CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization")
SHAPE = (14, 16, 18)
SPACING = (3.0, 2.0, 2.5)
ENDING = ".nii.gz"


def dataset_json(names: Sequence[str] = NAMES, ending: str = ENDING) -> dict:
    return {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {"background": 0, "whole": 1, "core": 2},
        "numTraining": 2,
        "file_ending": ending,
    }


def plans(
    normalisers: Sequence[str] = NORMALISERS,
    *,
    patch_size: Sequence[int] = (16, 16, 16),
    spacing: Sequence[float] = (2.5, 2.5, 2.5),
    reader: str = "SimpleITKIO",
    use_mask: bool = True,
) -> dict:
    resampling = {
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
    }
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": list(SHAPE),
        "spacing": list(spacing),
        "normalization_schemes": list(normalisers),
        "use_mask_for_norm": [use_mask] * len(normalisers),
        "batch_dice": False,
        **resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2,
                "features_per_stage": [4, 8],
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
                "strides": [[1, 1, 1], [2, 2, 2]],
                "n_conv_per_stage": [1, 1],
                "n_conv_per_stage_decoder": [1],
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    intensities = {"mean": 40.0, "std": 20.0, "percentile_00_5": -60.0, "percentile_99_5": 120.0}
    return {
        "dataset_name": "Dataset998_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "transpose_forward": [1, 0, 2],
        "transpose_backward": [1, 0, 2],
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": configuration},
        "foreground_intensity_properties_per_channel": {
            str(number): dict(intensities) for number in range(len(normalisers))
        },
    }


def trainer(of: type, *, names: Sequence[str] = NAMES, device: str = "cpu", **settings: object):
    """Return a trainer of this class, with these settings of its section in the plans, before `initialize`."""
    made = plans(tuple(islice(cycle(NORMALISERS), len(names))))
    made["continue_training"] = False
    made["configurations"]["3d_fullres"]["unimrseg"] = {of.section: settings}
    return of(made, "3d_fullres", 0, dataset_json(names), torch.device(device))


def image(seed: int = 0, channels: int = len(NAMES), shape: Sequence[int] = SHAPE) -> np.ndarray:
    """Return a raw image whose channels have foreground of different extent, zero around it."""
    rng = np.random.default_rng(seed)
    data = np.zeros((channels, *shape), dtype=np.float32)
    for number, channel in enumerate(data):
        margin = 1 + number % 3
        inside = tuple(slice(margin, size - margin) for size in shape)
        channel[inside] = rng.normal(60, 20, channel[inside].shape)
    return data


def write(
    path: Path,
    array: np.ndarray,
    spacing: Sequence[float] = SPACING,
    origin: Sequence[float] = (-7.0, 11.0, 5.0),
    direction: Sequence[float] = (1, 0, 0, 0, 1, 0, 0, 0, 1),
) -> str:
    """Write one image (Z, Y, X as SimpleITK's arrays are); spacing in the array's order. Returns the path as text."""
    itk_image = sitk.GetImageFromArray(array)
    itk_image.SetSpacing(tuple(spacing)[::-1])
    itk_image.SetOrigin(tuple(origin))
    itk_image.SetDirection(tuple(direction))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(itk_image, str(path), True)
    return str(path)


def write_case(folder: Path, name: str, data: np.ndarray, channels: Sequence[int] | None = None) -> list[str]:
    """Write the given channels of a raw image as `name_XXXX.nii.gz`; returns the paths."""
    channels = range(len(data)) if channels is None else channels
    return [write(folder / f"{name}_{channel:04d}{ENDING}", data[channel]) for channel in channels]
