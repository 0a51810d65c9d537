"""Predicts a case of fuzz_inputs.py with a tiny untrained network, and judges what comes of it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from fuzz_inputs_cases import BAD, CHANNELS, GOOD, NAME, Case
from nibabel.orientations import io_orientation
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.method.networks.build import build_network

PREDICTED, REFUSED, FAILED = "predicted", "refused", "failed"
LONGEST_PROBLEM = 600
BESIDE = {"dataset.json", "modalities.json", "plans.json", "predict_from_raw_data_args.json"}
NORMALISERS = ("CTNormalization", "ZScoreNormalization", "NoNormalization", "RescaleTo01Normalization")


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        kind: PREDICTED, REFUSED or FAILED.
        detail: the message of the refusal, or what is wrong.
        seconds: how long the prediction took.
    """

    kind: str
    detail: str
    seconds: float


@lru_cache
def untrained_predictor(reader: str, ending: str) -> UniMRSegPredictor:
    """Return a predictor with an untrained network of a few channels, for four modalities."""
    flat = reader == "NaturalImage2DIO"
    torch.manual_seed(0)
    dimensions = 2 if flat else 3
    resampling, kinds = {"order": 1, "order_z": 0, "force_separate_z": None}, ("data", "seg", "probabilities")
    configuration = {
        "data_identifier": "fuzz", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [16] * dimensions, "median_image_size_in_voxels": [14] * dimensions,
        "spacing": [1.0 if flat else 2.5] * dimensions, "normalization_schemes": list(NORMALISERS),
        "use_mask_for_norm": [True] * CHANNELS, "batch_dice": False,
        **{f"resampling_fn_{of}": "resample_data_or_seg_to_shape" for of in kinds},
        **{f"resampling_fn_{of}_kwargs": resampling | {"is_seg": of == "seg"} for of in kinds},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 2, "features_per_stage": [4, 8], "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
                "kernel_sizes": [[3] * dimensions] * 2, "strides": [[1] * dimensions, [2] * dimensions],
                "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }  # fmt: skip
    foreground = {"mean": 40.0, "std": 20.0, "percentile_00_5": -60.0, "percentile_99_5": 120.0}
    order = [0, 1, 2] if flat else [1, 0, 2]
    plans = PlansManager({
        "dataset_name": "Dataset999_Fuzz", "plans_name": "nnUNetPlans", "image_reader_writer": reader,
        "transpose_forward": order, "transpose_backward": order, "label_manager": "LabelManager",
        "configurations": {"fuzz": configuration},
        "foreground_intensity_properties_per_channel": {str(number): foreground for number in range(CHANNELS)},
    })  # fmt: skip
    dataset_json = {
        "channel_names": dict(zip("0123", ("CT", "PET", "T1", "T2"), strict=True)),
        "labels": {"background": 0, "whole": 1, "core": 2}, "numTraining": 2, "file_ending": ending,
    }  # fmt: skip
    chosen = plans.get_configuration("fuzz")
    network = build_network(chosen, CHANNELS, 3, False, adapters=False)
    predictor = UniMRSegPredictor(
        tile_step_size=1.0, device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False
    )  # fmt: skip
    predictor.manual_initialization(
        network, plans, chosen, [network.state_dict()], dataset_json, "UniMRSegStage2Trainer", None
    )  # fmt: skip
    return predictor


def judge_case(case: Case, output: Path) -> Outcome:
    """Predict a case into a folder that is not there yet, and judge the result; the folder is removed."""
    begun = time.monotonic()
    predictor = untrained_predictor(case.reader, case.ending)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictor.predict_from_files(str(case.files[0].parent), str(output), False, True, 0, 0)
            wrong = prediction_problem(case, output, predictor)
            kind, detail = PREDICTED, ""
    except UserError as error:
        kind, detail = REFUSED, str(error).replace(f"{case.files[0].parent}/", "")
        wrong = refusal_problem(case, detail, output)
    except Exception as error:
        kind, detail = FAILED, ""
        last = traceback.extract_tb(error.__traceback__)[-1]
        wrong = f"{type(error).__name__} instead of a UserError: {error} ({Path(last.filename).name}:{last.lineno})"
    finally:
        shutil.rmtree(output, ignore_errors=True)
    return Outcome(FAILED if wrong else kind, wrong or detail, time.monotonic() - begun)


def refusal_problem(case: Case, message: str, output: Path) -> str | None:
    """Say what is wrong with a refusal, or None."""
    first, *problems = message.split("\n  - ")
    if case.verdict == GOOD:
        return f"is refused, must be predicted: {message}"
    if output.exists():
        return f"the output folder is there after a refusal: {sorted(path.name for path in output.iterdir())}"
    for problem in problems or [first]:
        if len(problem) > LONGEST_PROBLEM or "\n" in problem:
            return f"a message of {len(problem)} characters in {problem.count(chr(10)) + 1} lines: {problem}"
        if NAME not in problem:
            return f"a message that names neither file nor case: {problem}"
    noise = re.search(
        r"Traceback|\(0x[0-9a-f]{5,}|\.cxx|itk::|ITK ERROR|sitk::|Exception thrown|bad_alloc|allocate|MemoryError",
        message,
    )
    return f"a message with '{noise[0]}': {message}" if noise else None


def prediction_problem(case: Case, output: Path, predictor: UniMRSegPredictor) -> str | None:
    """Say what is wrong with a prediction, or None: another geometry than the first available file, other labels."""
    if case.verdict == BAD:
        return "is predicted, must be refused"
    written = output / f"{NAME}{case.ending}"
    names = {path.name for path in output.iterdir()}
    if names != BESIDE | {written.name}:
        return f"the output folder holds {sorted(names)}"
    read = [_oriented(case.reader, path) for path in case.files]
    sizes = [len(data) for data, _ in read]
    channels = [int(path.name[len(NAME) + 1 :][:4]) for path in case.files]
    if sum(sizes) == CHANNELS != len(sizes):
        channels = np.cumsum([0, *sizes[:-1]]).tolist()
    image = np.zeros((CHANNELS, *read[0][0].shape[1:]), np.float32)
    for channel, (data, _) in zip(channels, read, strict=True):
        image[channel : channel + len(data)] = data
    available = [bool(channel.min() != channel.max()) for channel in image]
    order = np.argsort(channels)
    first = next(index for index in order if any(part.min() != part.max() for part in read[index][0]))
    report = json.loads((output / "modalities.json").read_text())[NAME]["available"]
    if report != [name for name, there in zip(("CT", "PET", "T1", "T2"), available, strict=True) if there]:
        return f"modalities.json says {report}, the files have {available}"
    with contextlib.suppress(IndexError):
        if any(not np.isfinite(channel).all() for channel in image):
            return "NaN or infinite values were predicted"
    expected = predictor.predict_single_npy_array(image, {"spacing": read[first][1]})
    found = _oriented(case.reader, written)[0][0]
    if not np.array_equal(found, expected):
        return f"the segmentation {found.shape} is not that of the same array {expected.shape}"
    return geometry_problem(case.reader, case.files[first], written)


def _oriented(reader: str, path: Path) -> tuple[np.ndarray, Sequence[float]]:
    """Return channels (C, Z, Y, X) of a file in the order that the reader gives them, and the spacing."""
    if reader.startswith("Nibabel"):
        image = nibabel.load(path)
        if reader.endswith("Reorient"):
            image = image.as_reoriented(io_orientation(image.affine))
        zooms = [float(size) for size in image.header.get_zooms()[::-1]]
        return image.get_fdata().astype(np.float32).transpose()[None], zooms
    if reader == "NaturalImage2DIO":
        with Image.open(path) as picture:
            array = (
                np.asarray(picture.convert("RGBA" if "transparency" in picture.info else "RGB"))
                if picture.mode == "P"
                else np.asarray(picture)
            )
        colours = array.transpose(2, 0, 1)[:, None] if array.ndim == 3 else array[None, None]
        return colours.astype(np.float32), (999, 1, 1)
    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise AssertionError(f"{path.name} holds {image.GetPixelIDTypeAsString()} and was predicted")
    if reader.endswith("Reorient"):
        image = sitk.DICOMOrient(image, "RAS")
    array, spacing = sitk.GetArrayFromImage(image).astype(np.float32), image.GetSpacing()
    if image.GetDimension() == 2:
        return array[None, None], (max(spacing) * 999, *spacing[::-1])
    return (array if image.GetDimension() == 4 else array[None]), spacing[:3][::-1]


def geometry_problem(reader: str, given: Path, written: Path) -> str | None:
    """Say how the geometry of a segmentation differs from that of the image, or None."""
    if reader == "NaturalImage2DIO":
        sizes = Image.open(given).size, Image.open(written).size
        return None if sizes[0] == sizes[1] else f"{sizes[1]} pixels instead of {sizes[0]}"
    if reader.startswith("Nibabel"):
        pair = nibabel.load(given), nibabel.load(written)
        if not abs(np.linalg.det(pair[0].affine[:3, :3].astype(float))) > 0:
            return f"is predicted with the singular affine {pair[0].affine.tolist()}"
        scale = np.abs(pair[0].affine[:3, :3]).max()
        same = pair[0].shape == pair[1].shape and np.allclose(
            pair[0].affine, pair[1].affine, rtol=1e-5, atol=1e-4 * scale
        )
        return None if same else f"affine {pair[1].affine.tolist()} instead of {pair[0].affine.tolist()}"
    pair = sitk.ReadImage(str(given)), sitk.ReadImage(str(written))
    dimensions = min(pair[0].GetDimension(), 3)
    full = [np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:dimensions, :dimensions] for image in pair]
    spacing = np.array(pair[0].GetSpacing()[:dimensions])
    for name, values, tolerance in (
        ("size", [image.GetSize()[:dimensions] for image in pair], 0),
        ("spacing", [image.GetSpacing()[:dimensions] for image in pair], 1e-5 * spacing.min()),
        ("origin", [image.GetOrigin()[:dimensions] for image in pair], 1e-4 * spacing.min()),
        ("direction", full, 1e-4),
    ):
        if not np.allclose(*values, rtol=1e-5, atol=tolerance):
            return f"{name} {np.array(values[1]).tolist()} instead of {np.array(values[0]).tolist()}"
    return None
