"""Preprocessed cases, as stock nnU-Net leaves them, checked before a training starts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunetv2_unimrseg.data import preprocessed_cases
from nnunetv2_unimrseg.data.case_table import TrainingCase, write_case_table
from nnunetv2_unimrseg.data.preprocessed_cases import check_preprocessed_cases
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer

LABELS = LabelManager(tiny.dataset_json()["labels"], None)


def write(folder: Path, name: str, change=lambda image, label: None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    image, label = tiny.image(), np.zeros((1, *tiny.SHAPE), np.int16)
    label[0, 4:8], label[0, 0] = 1, -1
    change(image, label)
    for old in folder.glob(f"{name}.*"):
        old.unlink()
    (folder / f"{name}_seg.b2nd").unlink(missing_ok=True)
    whole = (1, *tiny.SHAPE)
    properties = {"spacing": tiny.SPACING}
    nnUNetDatasetBlosc2.save_case(image, label, properties, str(folder / name), whole, whole, whole, whole)


def check(folder: Path) -> None:
    modalities = Modalities(tiny.NAMES)
    check_preprocessed_cases(folder, infer_dataset_class(str(folder)), LABELS, modalities, show_progress=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "nnUNetPlans_3d_fullres"
    for name in ("a", "b"):
        write(made, name)
    return made


def test_cases_in_order_are_noted_and_not_read_again(folder, monkeypatch):
    before = sorted(path.name for path in folder.iterdir())
    check(folder)
    assert sorted(path.name for path in folder.iterdir()) == before  # nnU-Net takes no other files among its own
    assert (folder.parent / "unimrseg_checked_nnUNetPlans_3d_fullres.json").is_file()
    monkeypatch.setattr(preprocessed_cases, "_check_case", lambda *_: pytest.fail("was read again"))
    check(folder)
    monkeypatch.undo()
    write(folder, "b", lambda image, label: np.copyto(label, 255))
    with pytest.raises(UserError, match="255"):
        check(folder)


def test_everything_that_cannot_be_trained_with_is_one_message(folder):
    def overflown(image: np.ndarray, label: np.ndarray) -> None:
        image[2] = np.nan
        label[0, 5, 5, 5] = 255

    write(folder, "b", overflown)
    write(folder, "c", lambda image, label: np.copyto(image[1], 0))
    (folder / "d.b2nd").write_bytes(b"damaged")
    with pytest.raises(UserError) as caught:
        check(folder)
    message = str(caught.value)
    assert "have 4 problems; nothing was trained" in message
    assert "case 'b': normalised, the values of T1 (channel 2) are NaN or infinite" in message
    assert "case 'b': its label holds the value 255; the dataset's labels are -1, 0, 1, 2" in message
    assert "case 'c': normalised, the values of PET (channel 1) are all the same" in message
    assert "case 'd' cannot be read" in message
    assert not (folder.parent / "unimrseg_checked_nnUNetPlans_3d_fullres.json").exists()


def test_absent_modalities_and_labels_are_expected_exactly_where_the_table_says(folder):
    def without_pet_and_label(image: np.ndarray, label: np.ndarray) -> None:
        image[1], label[:] = np.nan, 0

    write(folder, "b", without_pet_and_label)
    with pytest.raises(UserError, match=r"the values of PET \(channel 1\) are NaN or infinite"):
        check(folder)
    known = {"a": TrainingCase(tiny.NAMES, True), "b": TrainingCase(("CT", "T1", "T2"), False)}
    write_case_table(folder.parent, known)
    check(folder)
    write_case_table(folder.parent, {**known, "a": TrainingCase(("CT", "PET"), False)})
    with pytest.raises(UserError) as caught:
        check(folder)
    message = str(caught.value)
    assert "3 problems" in message and "unimrseg_cases.json says that T1 (channel 2) is absent" in message
    assert "case 'a': unimrseg_cases.json says that it has no label, but there is one" in message


def test_a_note_that_cannot_be_written_or_read_does_not_matter(folder, monkeypatch, capsys):
    note = folder.parent / "unimrseg_checked_nnUNetPlans_3d_fullres.json"
    note.mkdir()
    check(folder)
    assert "will be checked again the next time" in capsys.readouterr().out
    note.rmdir()
    note.write_text("{")
    check(folder)
    assert json.loads(note.read_text())["num_cases"] == 2


def test_a_trainer_refuses_such_cases_before_it_starts(tmp_path, monkeypatch):
    for name in ("preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    trainer = tiny.trainer(UniMRSegStage1Trainer)
    trainer.preprocessed_dataset_folder = str(tmp_path / "data")
    write(tmp_path / "data", "a", lambda image, label: np.copyto(label, 9))
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda _: pytest.fail("started"))
    with pytest.raises(UserError, match="case 'a': its label holds the value 9"):
        trainer.on_train_start()
