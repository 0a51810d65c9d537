"""All commands on a phantom of which two channels are one modality."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import TRAINERS, make_planned_workspace

pytestmark = pytest.mark.integration

GROUPS = {"Water": [0, 3], "T1": [1], "T1ce": [2]}


def group(raw: Path) -> None:
    path = raw / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "unimrseg": {"modalities": GROUPS}}))
    for channel in GROUPS["Water"]:
        (raw / "imagesTr" / f"phantom_001_{channel:04d}.nii.gz").unlink()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = make_planned_workspace(tmp_path_factory.mktemp("groups") / "nnunet", change_raw=group)
    for trainer in TRAINERS[:3]:
        made.train(trainer)
    return made


def copy_images(made, folder: Path, channels: tuple[int, ...]) -> None:
    folder.mkdir()
    case = sorted((made.raw / made.dataset_name / "imagesTs").glob("*_0000.nii.gz"))[0].name[: -len("_0000.nii.gz")]
    for channel in channels:
        name = f"{case}_{channel:04d}.nii.gz"
        (folder / name).write_bytes((made.raw / made.dataset_name / "imagesTs" / name).read_bytes())


def model(made) -> tuple[object, ...]:
    return "-d", made.dataset, "-c", made.configuration, "-p", made.plans, "-f", 0, "-device", "cpu"


def test_plans_and_case_table_know_the_modalities(made):
    folder = made.preprocessed / made.dataset_name
    configurations = json.loads((folder / f"{made.plans}.json").read_text())["configurations"]
    assert configurations[made.configuration]["unimrseg_modalities"] == GROUPS
    cases = json.loads((folder / "unimrseg_cases.json").read_text())["cases"]
    assert cases["phantom_001"]["available"] == ["T1", "T1ce"]
    assert cases["phantom_000"]["available"] == list(GROUPS)


def test_a_case_without_the_group_is_predicted(made, tmp_path):
    copy_images(made, tmp_path / "in", (1, 2))
    made.run("unimrseg", "predict", "-i", tmp_path / "in", "-o", tmp_path / "ours", *model(made))
    (had,) = json.loads((tmp_path / "ours" / "modalities.json").read_text()).values()
    assert had == {"available": ["T1", "T1ce"], "missing": ["Water"]}
    made.run(
        "nnUNetv2_predict", "-i", tmp_path / "in", "-o", tmp_path / "stock", "-tr", TRAINERS[2], *model(made),
    )  # fmt: skip
    (ours,), (stock,) = (list((tmp_path / name).glob("*.nii.gz")) for name in ("ours", "stock"))
    assert ours.read_bytes() == stock.read_bytes()


def test_half_a_group_is_refused(made, tmp_path):
    copy_images(made, tmp_path / "in", (0, 1, 2))
    refused = made.run(
        "unimrseg", "predict", "-i", tmp_path / "in", "-o", tmp_path / "out", *model(made), check=False
    )  # fmt: skip
    assert refused.returncode == 2 and not (tmp_path / "out").exists()
    assert "Water needs the channels 0000 (FLAIR), 0003 (T2); the case has only 0000 (FLAIR)" in refused.stderr


def test_all_subsets_of_modalities_are_evaluated(made):
    made.run("unimrseg", "evaluate", *model(made))
    folder = made.model_folder(TRAINERS[2]) / "evaluation_folds_0"
    names = set(pd.read_csv(folder / "subsets.csv")["subset"])
    assert len(names) == 7 and "Water+T1+T1ce" in names and "Water" in names
    assert (folder / "report.html").stat().st_size > 100


def test_every_channel_of_a_missing_modality_is_reconstructed(made, tmp_path):
    copy_images(made, tmp_path / "in", (1, 2))
    made.run("unimrseg", "reconstruct", "-i", tmp_path / "in", "-o", tmp_path / "out", *model(made))
    written = sorted(path.name[-11:] for path in (tmp_path / "out").glob("*.nii.gz"))
    assert written == ["0000.nii.gz", "0003.nii.gz"]


def test_info_shows_the_channels_of_each_modality(made):
    told = made.run("unimrseg", "info", "-d", made.dataset, "-c", made.configuration, "-p", made.plans).stdout
    assert "Water: channels 0, 3" in told
