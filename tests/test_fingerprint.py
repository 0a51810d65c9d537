"""The fingerprint: nnU-Net's for complete cases; what is absent or unlabelled takes no part in the intensities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import trained
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_unimrseg.data.case_table import write_case_table
from nnunetv2_unimrseg.data.training_cases import RawDataset, check_raw_dataset
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.planners import fingerprint
from nnunetv2_unimrseg.planners.fingerprint import analyse_case, check_fingerprint, write_fingerprint

NAMES = ("a", "b", "c", "d", "e")


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """A raw dataset of five complete cases; fewer voxels are sampled of them, all in this process."""
    monkeypatch.setattr(fingerprint, "NUM_FOREGROUND_VOXELS", 5e3)
    monkeypatch.setattr(
        fingerprint, "map_in_processes", lambda function, arguments, *_: [function(*each) for each in arguments]
    )
    folder = tmp_path / "Dataset007_Tiny"
    trained.write_cases(folder / "imagesTr", folder / "labelsTr", NAMES)
    (folder / "dataset.json").write_text(json.dumps({**tiny.dataset_json(), "numTraining": len(NAMES)}))
    return folder


def checked(folder: Path) -> RawDataset:
    return check_raw_dataset(folder, show_progress=False)


def written(folder: Path) -> dict:
    path = folder.parent / "out" / "dataset_fingerprint.json"
    write_fingerprint(path, checked(folder), 1)
    return json.loads(path.read_text())


def test_a_complete_case_is_analysed_as_by_nnunet(raw):
    dataset = checked(raw)
    ours = analyse_case(dataset.cases[1], dataset.reader_class, dataset.modalities, dataset.file_ending, 100)
    case = dataset.cases[1]
    shape, spacing, foreground, _, relative_size = DatasetFingerprintExtractor.analyze_case(
        list(case.images), case.label, SimpleITKIO, 100
    )
    assert (ours.shape, list(ours.spacing), ours.relative_size) == (shape, list(spacing), relative_size)
    assert list(ours.foreground) == [0, 1, 2, 3]
    for number, values in enumerate(foreground):
        np.testing.assert_array_equal(ours.foreground[number], values)


class OneProcess:
    """Stands for nnU-Net's pool: computes at once, in this process."""

    _pool: tuple[()] = ()

    def __enter__(self) -> OneProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def starmap_async(self, function: Callable[..., object], arguments: Sequence[Sequence[object]]) -> SimpleNamespace:
        results = [function(*each) for each in arguments]
        return SimpleNamespace(ready=lambda: True, get=lambda: results)


@pytest.mark.parametrize("case_without_foreground", [False, True])
def test_the_file_of_complete_cases_is_nnunets(raw, monkeypatch, case_without_foreground):
    if case_without_foreground:
        tiny.write(raw / "labelsTr" / "c.nii.gz", np.zeros(tiny.SHAPE, np.uint8))
    written(raw)
    monkeypatch.setattr(fingerprint_extractor, "nnUNet_raw", str(raw.parent))
    monkeypatch.setattr(fingerprint_extractor, "nnUNet_preprocessed", str(raw.parent / "stock"))
    monkeypatch.setattr(fingerprint_extractor, "maybe_convert_to_dataset_name", str)
    monkeypatch.setattr(
        fingerprint_extractor.multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=lambda _: OneProcess())
    )
    extractor = DatasetFingerprintExtractor(raw.name)
    extractor.num_foreground_voxels_for_intensitystats = fingerprint.NUM_FOREGROUND_VOXELS
    extractor.run()
    stock = raw.parent / "stock" / raw.name / "dataset_fingerprint.json"
    assert (raw.parent / "out" / "dataset_fingerprint.json").read_bytes() == stock.read_bytes()


def test_intensities_are_those_of_the_labelled_cases_that_have_the_modality(raw):
    (raw / "imagesTr" / "a_0001.nii.gz").unlink()
    (raw / "labelsTr" / "b.nii.gz").unlink()
    for name, intensity in (("b", 5000), ("c", 300)):
        tiny.write(raw / "imagesTr" / f"{name}_0001.nii.gz", tiny.image(1)[1] + np.float32(intensity))
    made = written(raw)
    pet = made["foreground_intensity_properties_per_channel"]["1"]
    assert 300 < pet["max"] < 1000  # that of b counts for nothing
    assert len(made["spacings"]) == len(made["shapes_after_crop"]) == 5


def test_a_blank_image_takes_no_part_in_the_crop(raw):
    complete = written(raw)["shapes_after_crop"]
    tiny.write(raw / "imagesTr" / "a_0001.nii.gz", np.full(tiny.SHAPE, 7, np.float32))
    assert written(raw)["shapes_after_crop"] == complete


def test_labels_without_foreground_are_refused(raw):
    for name in NAMES:
        tiny.write(raw / "labelsTr" / f"{name}.nii.gz", np.zeros(tiny.SHAPE, np.uint8))
    with pytest.raises(UserError, match="No labelled case has a voxel of a label where there is CT"):
        written(raw)


def test_intensities_that_overflow_are_refused_and_nothing_is_written(raw):
    for name in NAMES:
        tiny.write(raw / "imagesTr" / f"{name}_0000.nii.gz", tiny.image(1)[0] * np.float32(1e36))
    with pytest.raises(UserError, match="The intensities of channel 0 inside the labels are so large"):
        written(raw)
    assert not list((raw.parent / "out").iterdir())


def test_a_reused_fingerprint_that_no_longer_fits_is_told(raw, capsys):
    written(raw)
    path = raw.parent / "out" / "dataset_fingerprint.json"
    check_fingerprint(path, checked(raw))
    assert "WARNING" not in capsys.readouterr().out
    (raw / "labelsTr" / "b.nii.gz").unlink()
    check_fingerprint(path, checked(raw))
    assert "was made when other modalities or labels were missing" in capsys.readouterr().out
    write_case_table(path.parent, checked(raw).table)
    check_fingerprint(path, checked(raw))
    assert "WARNING" not in capsys.readouterr().out
