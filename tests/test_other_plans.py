"""Plans and labels other than the default: region labels with an ignore label, 2D, stock plans, all subsets a step."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SECTIONS, Workspace

from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

pytestmark = pytest.mark.integration

THREE_STAGES = tuple(f"UniMRSegStage{number}Trainer" for number in (1, 2, 3))
IGNORE = 4


def small_budget() -> list[str]:
    return [
        *(f"{section}.num_epochs=1" for section in SECTIONS),
        *(f"{section}.num_iterations_per_epoch=1" for section in SECTIONS),
        *(f"{section}.num_val_iterations_per_epoch=1" for section in SECTIONS),
    ]


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Workspace:
    """A phantom with overlapping regions and an ignore label, planned by stock nnU-Net."""
    made = Workspace(
        tmp_path_factory.mktemp("regions"), dataset=902, dataset_name="Dataset902_Regions", plans="nnUNetPlans"
    )
    for folder in (made.raw, made.preprocessed, made.results):
        folder.mkdir()
    raw = made.raw / made.dataset_name
    write_phantom_dataset(raw, num_training=5, num_unseen=1, shape=(24, 24, 24), seed=5)
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"] = {
        "background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": IGNORE,
    }  # fmt: skip
    description["regions_class_order"] = [1, 2, 3]
    (raw / "dataset.json").write_text(json.dumps(description))
    for path in (raw / "labelsTr").iterdir():
        image = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(image)
        labels[: labels.shape[0] // 3] = IGNORE
        marked = sitk.GetImageFromArray(labels.astype(np.uint8))
        marked.CopyInformation(image)
        sitk.WriteImage(marked, str(path))
    made.run("nnUNetv2_plan_and_preprocess", "-d", made.dataset, "-c", "3d_fullres", "2d", "-np", 1, 1)
    for configuration in ("3d_fullres", "2d"):
        narrow(made, configuration)
    return made


def narrow(made: Workspace, configuration: str) -> None:
    path = made.preprocessed / made.dataset_name / f"{made.plans}.json"
    plans = json.loads(path.read_text())
    settings = plans["configurations"][configuration]
    settings["batch_size"] = 2
    arguments = settings["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4 * 2**stage for stage in range(arguments["n_stages"])]
    path.write_text(json.dumps(plans))
    made.run(
        "unimrseg", "configure", "-d", made.dataset, "-c", configuration, "-p", made.plans, "--set", *small_budget(),
        "stage3.subsets_per_step=all",
        "stage2.views=complete_and_incomplete",
    )  # fmt: skip


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_three_stages_and_prediction(regions, tmp_path, configuration):
    made = Workspace(
        regions.root, regions.dataset, regions.dataset_name, configuration=configuration, plans=regions.plans
    )
    for trainer in THREE_STAGES:
        made.train(trainer)
    unseen = next((made.raw / made.dataset_name / "imagesTs").glob("*_0002.nii.gz"))
    source = tmp_path / "incomplete"
    source.mkdir()
    (source / unseen.name).symlink_to(unseen)
    made.run(
        "nnUNetv2_predict", "-i", source, "-o", tmp_path / "out", "-d", made.dataset, "-c", configuration, "-f", 0,
        "-tr", THREE_STAGES[2], "-p", made.plans, "-device", "cpu", "--disable_tta",
    )  # fmt: skip
    predicted = sitk.ReadImage(str(tmp_path / "out" / unseen.name.replace("_0002", "")))
    given = sitk.ReadImage(str(unseen))
    assert predicted.GetSize() == given.GetSize()
    assert predicted.GetOrigin() == given.GetOrigin()
    assert set(np.unique(sitk.GetArrayFromImage(predicted))) <= {0, 1, 2, 3}
