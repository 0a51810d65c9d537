"""The three stages through stock nnUNetv2_train, on cases that lack modalities or a label."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TRAINERS, make_planned_workspace
from test_training_commands import log_of

pytestmark = pytest.mark.integration

INCOMPLETE = {"phantom_000": (1, 2), "phantom_001": (3,), "phantom_005": (0,)}
UNLABELLED = ("phantom_005", "phantom_006")


def take_away(raw: Path) -> None:
    for case, channels in INCOMPLETE.items():
        for channel in channels:
            (raw / "imagesTr" / f"{case}_{channel:04d}.nii.gz").unlink()
    for case in UNLABELLED:
        (raw / "labelsTr" / f"{case}.nii.gz").unlink()


def test_all_stages_train_and_validate_with_what_the_cases_have(tmp_path):
    made = make_planned_workspace(tmp_path / "nnunet", 7, take_away)
    made.set_values("stage3.unlabelled_share=0.5")
    splits = [{"train": [f"phantom_{number:03d}" for number in (1, 2, 3)], "val": ["phantom_000", "phantom_004"]}]
    splits_file = made.preprocessed / made.dataset_name / "splits_final.json"
    splits_file.write_text(json.dumps(splits))
    for trainer in TRAINERS[:3]:
        made.train(trainer)
        fold = made.model_folder(trainer) / "fold_0"
        log = log_of(made.model_folder(trainer))
        assert "3 labelled cases and 2 unlabelled; 2 of them lack a modality." in log
        summary = json.loads((fold / "validation" / "summary.json").read_text())
        assert len(summary["metric_per_case"]) == 2
        if trainer == TRAINERS[0]:
            scored = {entry["case"]: entry["metrics"] for entry in summary["metric_per_case"]}
            assert len(scored["phantom_004"]) == 14
            assert set(scored["phantom_000"]) == {"FLAIR", "T2"}
            assert set(scored["phantom_000"]["FLAIR"]) == {"FLAIR", "T2"}
    assert json.loads(splits_file.read_text()) == splits
