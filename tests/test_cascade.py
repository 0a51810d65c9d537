"""A cascade: 3d_lowres, then the three stages of 3d_cascade_fullres, then a case with one modality."""

from __future__ import annotations

import json

import pytest
import SimpleITK as sitk
from conftest import make_planned_workspace

pytestmark = pytest.mark.integration


def test_a_cascade_is_trained_and_predicts(tmp_path):
    made = make_planned_workspace(tmp_path / "nnunet")
    path = made.preprocessed / made.dataset_name / f"{made.plans}.json"
    plans = json.loads(path.read_text())
    full = plans["configurations"]["3d_fullres"]
    plans["configurations"] |= {
        "3d_lowres": {
            "inherits_from": "3d_fullres",
            "data_identifier": f"{made.plans}_3d_lowres",
            "spacing": [1.3 * size for size in full["spacing"]],
            "next_stage": "3d_cascade_fullres",
            "unimrseg": {**full["unimrseg"], "stage3": {**full["unimrseg"]["stage3"], "start_from": "scratch"}},
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    path.write_text(json.dumps(plans))
    two = ["phantom_000", "phantom_001"]
    (path.parent / "splits_final.json").write_text(json.dumps([{"train": two, "val": two}]))
    made.run("nnUNetv2_preprocess", "-d", made.dataset, "-plans_name", made.plans, "-c", "3d_lowres", "-np", 1)

    def train(configuration: str) -> str:
        return made.run(
            "unimrseg", "train", made.dataset, configuration, 0, "-p", made.plans, "-device", "cpu",
            nnUNet_n_proc_DA="0",
        ).stdout  # fmt: skip

    train("3d_lowres")
    assert "-prev_stage_predictions" in train("3d_cascade_fullres")

    unseen = next((made.raw / made.dataset_name / "imagesTs").glob("*_0002.nii.gz"))
    (tmp_path / "incomplete").mkdir()
    (tmp_path / "incomplete" / unseen.name).symlink_to(unseen)
    common = ("-d", made.dataset, "-f", 0, "-p", made.plans, "-device", "cpu", "--disable_tta")
    source = ("-i", tmp_path / "incomplete")
    made.run("unimrseg", "predict", *source, "-o", tmp_path / "first", "-c", "3d_lowres", *common)
    made.run(
        "unimrseg", "predict", *source, "-o", tmp_path / "second", "-c", "3d_cascade_fullres", *common,
        "-prev_stage_predictions", tmp_path / "first",
    )  # fmt: skip
    (segmented,) = (tmp_path / "second").glob("*.nii.gz")
    assert sitk.ReadImage(str(segmented)).GetSize() == sitk.ReadImage(str(unseen)).GetSize()
