"""A dataset of the kind that hospitals have, through `unimrseg plan`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import Workspace
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunetv2_unimrseg.data.case_table import read_case_table
from nnunetv2_unimrseg.data.phantom import MODALITIES, write_phantom_dataset

pytestmark = pytest.mark.integration

SMALL = ("-gpu_memory_target", 1, "--base-features", 8, "-np", 1)


def preprocessed(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, dict]]:
    dataset = nnUNetDatasetBlosc2(str(folder))
    cases = {name: dataset.load_case(name) for name in dataset.identifiers}
    return {name: (image[:], label[:], properties) for name, (image, label, _, properties) in cases.items()}


def test_incomplete_and_unlabelled_cases_are_planned_and_preprocessed(tmp_path):
    made = Workspace(tmp_path / "nnunet")
    for folder in (made.raw, made.preprocessed, made.results):
        folder.mkdir(parents=True)
    write_phantom_dataset(made.raw / made.dataset_name, 5, 0, shape=(24, 24, 24), seed=3)
    raw, base = made.raw / made.dataset_name, made.preprocessed / made.dataset_name
    (raw / "imagesTr" / "phantom_000_0001.nii.gz").unlink()
    blank = raw / "imagesTr" / "phantom_001_0003.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(blank)) * 0 + 7, str(blank))
    (raw / "labelsTr" / "phantom_002.nii.gz").unlink()
    said = made.run("unimrseg", "plan", "-d", made.dataset, "-c", "2d", "3d_fullres", *SMALL).stdout
    assert "5 training cases: 4 labelled, 2 with missing modalities" in said
    assert "FLAIR+T1+T1ce+T2      3         2" in said and "FLAIR+T1ce+T2         1         1" in said
    missing = {"phantom_000": [1], "phantom_001": [3]}
    table = read_case_table(base)
    assert [case.labelled for case in table.values()] == [True, True, False, True, True]
    for configuration in ("2d", "3d_fullres"):
        cases = preprocessed(base / f"{made.plans}_{configuration}")
        assert sorted(cases) == sorted(table)
        for name, (image, label, properties) in cases.items():
            absent = missing.get(name, [])
            assert table[name].available == tuple(np.delete(MODALITIES, absent))
            for channel, values in enumerate(image):
                assert np.isnan(values).all() if channel in absent else np.isfinite(values).all()
            assert (label > 0).any() == (name != "phantom_002")
            assert set(properties["class_locations"]) == {1, 2, 3}
            assert any(len(found) for found in properties["class_locations"].values()) == (name != "phantom_002")
        assert not cases["phantom_002"][1].any()
    assert not (base / "gt_segmentations" / "phantom_002.nii.gz").exists()
    assert len(list((base / "gt_segmentations").iterdir())) == 4
    fingerprint = json.loads((base / "dataset_fingerprint.json").read_text())
    assert len(fingerprint["spacings"]) == 5 and len(fingerprint["foreground_intensity_properties_per_channel"]) == 4
    plans = json.loads((base / f"{made.plans}.json").read_text())
    assert plans["configurations"]["3d_fullres"]["preprocessor_name"] == "DefaultPreprocessor"

    told = json.loads(made.run("unimrseg", "info", "-d", made.dataset, "-c", "2d", "-p", made.plans, "--json").stdout)
    assert told["model"]["training_cases"] == {"cases": 5, "labelled": 4, "incomplete": 2}
    folder = base / f"{made.plans}_2d"
    before = preprocessed(folder)
    made.run("unimrseg", "plan", "-d", made.dataset, "-c", "2d", "--preprocess-only", "-np", 1)
    for name, (image, label, properties) in preprocessed(folder).items():
        assert image.tobytes() == before[name][0].tobytes() and label.tobytes() == before[name][1].tobytes()
        np.testing.assert_equal(properties, before[name][2])
