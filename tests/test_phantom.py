"""The generated demo dataset: classes, contrasts, files."""

import hashlib
import json

import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from nnunetv2_unimrseg.data import phantom
from nnunetv2_unimrseg.errors import UserError

SMALL, USUAL = (24, 24, 24), (40, 48, 40)
SEEN_CHANGE = 0.1
"""Intensity difference from the surrounding class that counts as contrast: two and a half times the noise."""


def patients(shape, number=6, **options):
    return [phantom.make_patient(np.random.default_rng([7, index]), shape, **options) for index in range(number)]


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def intensities_without(label):
    """Return the table of intensities in which a tumour class looks like the class around it."""
    column = phantom.TISSUES.index(list(phantom.LABELS)[label])
    around = {name: None if label == 1 else row[column - 1] for name, row in phantom.INTENSITIES.items()}
    return {name: (*row[:column], around[name], *row[column + 1 :]) for name, row in phantom.INTENSITIES.items()}


def change_by_modality(label, monkeypatch):
    """Return, a modality, how much the class changes the image where it is, in parts of what is there without it."""
    shown = patients(USUAL, 12, noise=0.0, bias=0.0)
    monkeypatch.setattr(phantom, "INTENSITIES", intensities_without(label))
    changes = []
    for patient, hidden in zip(shown, patients(USUAL, 12, noise=0.0, bias=0.0), strict=True):
        assert np.array_equal(patient.labels, hidden.labels)
        core = ndimage.binary_erosion(patient.labels >= label) & (patient.labels == label)
        pairs = zip(patient.images, hidden.images, strict=True)
        changes.append([np.median(image[core]) / np.median(without[core]) - 1 for image, without in pairs])
    return np.median(changes, axis=0)


@pytest.mark.parametrize("shape", [SMALL, USUAL])
def test_every_class_is_surrounded_by_the_class_before_it(shape):
    for patient in patients(shape):
        assert np.bincount(patient.labels.ravel(), minlength=4).min() >= phantom.FEWEST_VOXELS
        for label in (2, 3):
            touched = ndimage.binary_dilation(patient.labels >= label)
            assert (patient.labels[touched] >= label - 1).all()


@pytest.mark.parametrize("shape", [SMALL, USUAL])
def test_images_are_zero_outside_the_head_and_positive_in_it(shape):
    for patient in patients(shape):
        head = patient.images > 0
        assert (head == head[0]).all()
        assert 0.2 < head[0].mean() < 0.8
        assert head[0][patient.labels > 0].all()
        assert patient.images.shape == (4, *shape)


def test_the_table_gives_every_class_contrast_in_two_or_more_modalities_and_never_in_all():
    surroundings = {
        "edema": "white_matter",
        "non_enhancing_tumour": "edema",
        "enhancing_tumour": "non_enhancing_tumour",
    }
    for inner, outer in surroundings.items():
        rows = [dict(zip(phantom.TISSUES, row, strict=True)) for row in phantom.INTENSITIES.values()]
        below = [row["white_matter"] if row[outer] is None else row[outer] for row in rows]
        seen = [
            row[inner] is not None and abs(row[inner] - under) > SEEN_CHANGE
            for row, under in zip(rows, below, strict=True)
        ]
        assert 2 <= sum(seen) < len(phantom.MODALITIES)


@pytest.mark.parametrize(
    ("label", "seen_in"),
    [(1, {"FLAIR", "T2"}), (2, {"T1", "T1ce", "T2"}), (3, {"T1ce", "T2"})],
    ids=list(phantom.LABELS)[1:],
)
def test_the_images_show_each_class_in_two_or_more_modalities_and_never_in_all(label, seen_in, monkeypatch):
    changes = change_by_modality(label, monkeypatch)
    assert {name for name, value in zip(phantom.MODALITIES, changes, strict=True) if abs(value) > 0.25} == seen_in


def test_each_modality_has_bright_or_dark_spots_of_its_own():
    plain = phantom.TISSUES.index("white_matter")
    for modality, intensity in phantom.SPOT_INTENSITIES.items():
        assert abs(intensity - phantom.INTENSITIES[modality][plain]) > 2 * SEEN_CHANGE


def test_patients_differ_in_place_size_and_anatomy():
    drawn = patients(USUAL)
    centres = np.array([np.argwhere(patient.labels > 0).mean(0) for patient in drawn])
    sizes = [np.count_nonzero(patient.labels) for patient in drawn]
    assert centres.std(0).min() > 1
    assert max(sizes) > 1.3 * min(sizes)
    assert len({np.count_nonzero(patient.images[0]) for patient in drawn}) == len(drawn)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        phantom.write_phantom_dataset(tmp_path / name, 2, 1, SMALL, seed=seed)
    first, again, other = (digests(tmp_path / name) for name in "abc")
    assert first == again
    assert {name for name in first if first[name] == other[name]} == set()


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path):
    phantom.write_phantom_dataset(tmp_path / "few", 1, 1, SMALL)
    phantom.write_phantom_dataset(tmp_path / "more", 3, 2, SMALL)
    few, more = digests(tmp_path / "few"), digests(tmp_path / "more")
    del few["dataset.json"]
    assert few.items() <= more.items()


def test_the_dataset_has_the_asked_patients_shape_and_geometry(tmp_path):
    folder = tmp_path / "Dataset900_Phantom"
    phantom.write_phantom_dataset(folder, 3, 2, (24, 28, 20), (2.0, 3.0, 4.0))
    counts = {name: len(list((folder / name).iterdir())) for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")}
    assert counts == {"imagesTr": 12, "labelsTr": 3, "imagesTs": 8, "labelsTs": 2}
    image = SimpleITK.ReadImage(str(folder / "imagesTr" / "phantom_000_0000.nii.gz"))
    label = SimpleITK.ReadImage(str(folder / "labelsTr" / "phantom_000.nii.gz"))
    assert image.GetSize() == label.GetSize() == (24, 28, 20)
    assert image.GetSpacing() == label.GetSpacing() == (2.0, 3.0, 4.0)
    assert image.GetOrigin() == label.GetOrigin() != (0.0, 0.0, 0.0)
    description = json.loads((folder / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "FLAIR", "1": "T1", "2": "T1ce", "3": "T2"}
    assert description["numTraining"] == 3


def test_without_unseen_patients_their_folders_are_empty(tmp_path):
    phantom.write_phantom_dataset(tmp_path / "x", 1, 0, SMALL)
    assert sorted(path.name for path in (tmp_path / "x").glob("*Ts/")) == ["imagesTs", "labelsTs"]
    assert not list((tmp_path / "x").glob("*Ts/*"))


def test_nnunet_accepts_the_dataset(tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = tmp_path / "Dataset900_Phantom"
    phantom.write_phantom_dataset(folder, 2, 1, SMALL)
    verify_dataset_integrity(str(folder), num_processes=1)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "dataset.json").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        phantom.write_phantom_dataset(tmp_path, 2, 1, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(phantom, "_write_patient", fail)
    with pytest.raises(
        UserError, match=r"Cannot write .*Dataset900_Phantom: disk full\. What was there before is unchanged"
    ):
        phantom.write_phantom_dataset(tmp_path / "Dataset900_Phantom", 2, 1, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_numbers_out_of_range_are_listed_together(tmp_path):
    with pytest.raises(UserError) as refusal:
        phantom.write_phantom_dataset(tmp_path / "x", 0, -1, (10, 24, 24), (0.0, 1.0, 1.0), seed=-1)
    message = str(refusal.value)
    for number in ("found 0", "found -1", "(10, 24, 24)", "(0.0, 1.0, 1.0)", "seed"):
        assert number in message
    assert list(tmp_path.iterdir()) == []
