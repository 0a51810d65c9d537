"""The cases of fuzz_inputs.py: each is made from its number and a seed, so that one can be made again alone."""

from __future__ import annotations

import copy
import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fuzz_inputs_formats import PNG_CHANGES, TEXT_CHANGES, other_format, png_bytes, text_bytes
from fuzz_inputs_nifti import BAD, BYTE_CHANGES, EITHER, GOOD, HEADER_CHANGES, Nifti, odd_geometry

NAME, CHANNELS = "patient", 4
NIFTI_SETTINGS = (
    ("SimpleITKIO", ".nii.gz"), ("SimpleITKIO", ".nii.gz"), ("SimpleITKIO", ".nii"), ("SimpleITKIO", ".nii"),
    ("NibabelIO", ".nii.gz"), ("NibabelIO", ".nii"), ("NibabelIOWithReorient", ".nii.gz"),
    ("SimpleITKIOWithReorient", ".nii.gz"),
)  # fmt: skip
CHANGES = {change.__name__: change for change in (*HEADER_CHANGES, *BYTE_CHANGES, odd_geometry)}
SEVERAL, FOREIGN, NONE = "several", "other_format", "unchanged"

VARIATIONS = (
    *(("nifti", change.__name__) for change in (*HEADER_CHANGES, *BYTE_CHANGES) for _ in range(2)),
    *[("nifti", "odd_geometry")] * 4, *[("nifti", SEVERAL)] * 3, ("nifti", FOREIGN), ("nifti", NONE),
    *((ending, change) for ending in (".mha", ".nrrd") for change in (*TEXT_CHANGES, FOREIGN, "odd_geometry")),
    *((".png", change) for change in (*PNG_CHANGES, FOREIGN, NONE)),
)  # fmt: skip
"""Pairs of a format and of what is odd in it; case number n has the n-th, again and again."""

EVERY_VARIATION = len(VARIATIONS)
"""So many cases one after another have every kind of variation."""


@dataclass(frozen=True)
class Case:
    """The files of one patient.

    Attributes:
        number: of the case.
        files: the paths.
        reader: nnU-Net's reader of the plans.
        ending: of the files.
        variation: what is odd.
        verdict: what must come of it.
    """

    number: int
    files: tuple[Path, ...]
    reader: str
    ending: str
    variation: str
    verdict: str


def make_case(number: int, seed: int, folder: Path) -> Case:
    """Write the files of a case into a folder."""
    rng = np.random.default_rng([seed, number])
    kind, change = VARIATIONS[number % len(VARIATIONS)]
    reader, ending = NIFTI_SETTINGS[int(rng.integers(len(NIFTI_SETTINGS)))]
    if kind != "nifti":
        reader, ending = "NaturalImage2DIO" if kind == ".png" else "SimpleITKIO", kind
    shape = tuple(int(size) for size in rng.integers(6, 21, 3))
    affine = np.diag([*rng.choice([1.0, 1.5, 2.0, 2.5, 3.0, 4.0], 3), 1.0])
    affine[:3, 3] = np.round(rng.normal(size=3) * 30, 2)
    base = Nifti(
        np.zeros(shape),
        affine,
        version=int(rng.choice([1, 2] if reader[0] == "N" else [1] * 9 + [2])),
        order=str(rng.choice(["<", "<", ">"])),
    )
    if change == "odd_geometry":
        odd_geometry(rng, base)
    channels = sorted(rng.permutation(CHANNELS)[: int(rng.integers(1, CHANNELS + 1))].tolist())
    together = change != "odd_geometry" and rng.random() < 0.3
    odd = set(channels) if together else set(channels[: int(rng.choice([1, 1, 2]))])
    written, verdicts = [], []
    for channel in channels:
        of_file = np.random.default_rng([seed, number, 0 if together else channel + 1])
        file = copy.deepcopy(base)
        file.values = make_intensities(channel, seed + number, shape)
        content, verdict = make_content(of_file, file, (kind, reader, ending), change if channel in odd else NONE)
        path = folder / f"{NAME}_{channel:04d}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written.append(path)
        verdicts.append(verdict)
    overall = BAD if BAD in verdicts else EITHER if EITHER in verdicts else GOOD
    return Case(number, tuple(written), reader, ending, f"{kind} {change}", overall)


def make_intensities(channel: int, seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return a scan (x, y, z): whole numbers from 1 to 120, zero around them."""
    rng = np.random.default_rng([seed, channel])
    values = np.zeros(shape)
    inside = tuple(slice(1, size - 1) for size in shape)
    values[inside] = np.clip(np.round(rng.normal(60, 20, values[inside].shape)), 1, 120)
    return values


def make_content(
    rng: np.random.Generator, file: Nifti, setting: tuple[str, str, str], change: str
) -> tuple[bytes, str]:
    """Return the bytes of a file in the format and with the ending of `setting`, and what must come of it."""
    kind, reader, ending = setting
    if change == FOREIGN:
        return other_format(rng, ending)
    unchanged = change in (NONE, "odd_geometry")
    if kind == ".png":
        return png_bytes(rng, file.values[:, :, 3], None if unchanged else change)
    if kind in (".mha", ".nrrd"):
        return text_bytes(rng, file, kind == ".mha", None if unchanged else change)
    packed = ending == ".nii.gz"
    verdict = GOOD
    if not unchanged:
        several = rng.choice(len(HEADER_CHANGES), int(rng.integers(2, 4)), replace=False) if change == SEVERAL else ()
        for name in [HEADER_CHANGES[index].__name__ for index in several] or [change]:
            if CHANGES[name] in BYTE_CHANGES:
                return CHANGES[name](rng, file.build(), packed)
            verdict = CHANGES[name](rng, file)
    verdict = EITHER if change == SEVERAL else verdict
    if file.version == 2 and reader.startswith("SimpleITK"):
        verdict = BAD  # it does not know NIfTI-2
    return (gzip.compress(file.build(), mtime=0) if packed else file.build()), verdict
