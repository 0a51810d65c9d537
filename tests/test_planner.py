"""UniMRSegPlanner: memory of the costliest stage, narrower networks, settings kept, folders of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.planners.memory import ViewCost, stage_costs, view_cost
from nnunetv2_unimrseg.planners.planner import PLANS_NAME, UniMRSegPlanner

DATASET = "Dataset007_Tiny"
NAMES = ("FLAIR", "T1", "T1ce", "T2")


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """A dataset of brain-sized cases: only its fingerprint exists, which is all that planning reads."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable / DATASET).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    raw = tmp_path / "nnUNet_raw" / DATASET
    raw_json = {**tiny.dataset_json(NAMES), "numTraining": 100}
    (raw / "dataset.json").write_text(json.dumps(raw_json))
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir()
    tiny_image = np.zeros((4, 4, 4), dtype=np.uint8)
    import SimpleITK as sitk

    for channel in range(4):
        sitk.WriteImage(sitk.GetImageFromArray(tiny_image), str(raw / "imagesTr" / f"case_{channel:04d}.nii.gz"))
    sitk.WriteImage(sitk.GetImageFromArray(tiny_image), str(raw / "labelsTr" / "case.nii.gz"))
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    fingerprint = {
        "spacings": [[1.0, 1.0, 1.0]] * 100,
        "shapes_after_crop": [[140, 170, 138]] * 100,
        "foreground_intensity_properties_per_channel": {str(channel): intensities for channel in range(4)},
        "median_relative_size_after_cropping": 0.4,
    }
    preprocessed = tmp_path / "nnUNet_preprocessed" / DATASET
    (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    return preprocessed


def planned(dataset: Path, **options: object) -> dict:
    UniMRSegPlanner(7, **options).plan_experiment()
    return json.loads((dataset / f"{options.get('plans_name', PLANS_NAME)}.json").read_text())


def test_less_memory_makes_smaller_patches(dataset):
    roomy = planned(dataset, gpu_memory_target_in_gb=4000.0)["configurations"]["3d_fullres"]
    usual = planned(dataset)["configurations"]["3d_fullres"]
    assert "unimrseg" not in usual
    assert usual["batch_size"] >= 2
    small = planned(dataset, gpu_memory_target_in_gb=8.0)["configurations"]["3d_fullres"]
    assert small["batch_size"] == 2
    sizes = [np.prod(configuration["patch_size"]) for configuration in (small, usual, roomy)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


def test_the_measure_of_a_view_is_nnunets(dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # the number of threads that nnU-Net estimates with
    architecture = planned(dataset)["configurations"]["3d_fullres"]["architecture"]
    kwargs, imports = architecture["arch_kwargs"], architecture["_kw_requires_import"]
    patch = [64, 96, 64]
    cost = view_cost(architecture, patch, 4, 3, {"stage3": {"adapters": True, "reverse_attention": True}})
    stock = nnUNetPlannerResEncL.static_estimate_VRAM_usage(
        patch, 4, 3, architecture["network_class_name"], kwargs, imports
    )
    assert cost.plain == stock
    assert cost.plain < cost.adapted < 2 * cost.plain
    by_hand = sum(
        channels * np.prod([extent // 2**stage for extent in patch])
        for stage, channels in enumerate(kwargs["features_per_stage"])
    )
    assert all(stride == [2, 2, 2] for stride in kwargs["strides"][1:])
    assert cost.features == by_hand
    simpler = view_cost(architecture, patch, 4, 3, {"stage3": {"reverse_attention": False}})
    assert cost.plain < simpler.adapted < cost.adapted
    assert view_cost(architecture, patch, 4, 3, {"stage3": {"adapters": False}}).adapted == cost.plain


def test_costs_of_the_stages():
    cost = ViewCost(plain=10, adapted=15, features=4)
    assert stage_costs(cost) == {"stage1": 10, "stage2": 10, "stage3": 17}


def test_base_features_narrow_the_same_topology(dataset):
    wide = planned(dataset)["configurations"]["3d_fullres"]
    narrow = planned(dataset, base_features=8)["configurations"]["3d_fullres"]
    wide_kwargs, narrow_kwargs = (plan["architecture"]["arch_kwargs"] for plan in (wide, narrow))
    assert narrow_kwargs["features_per_stage"] == [features // 4 for features in wide_kwargs["features_per_stage"]]
    assert narrow_kwargs["features_per_stage"][0] == 8
    for key in ("strides", "kernel_sizes", "n_stages"):
        assert narrow_kwargs[key] == wide_kwargs[key]
    assert (narrow["patch_size"], narrow["batch_size"]) == (wide["patch_size"], wide["batch_size"])


def test_data_folders_are_its_own(dataset):
    plans = planned(dataset)
    assert plans["plans_name"] == PLANS_NAME
    for name, configuration in plans["configurations"].items():
        assert configuration["data_identifier"] == f"{PLANS_NAME}_{name}"
        assert configuration["preprocessor_name"] == "DefaultPreprocessor"


def test_user_settings_survive_planning_again(dataset):
    plans = planned(dataset)
    plans["configurations"]["3d_fullres"]["unimrseg"] = {"stage1": {"num_epochs": 7}}
    (dataset / f"{PLANS_NAME}.json").write_text(json.dumps(plans))
    for target in (24.0, 4000.0):
        again = planned(dataset, gpu_memory_target_in_gb=target)["configurations"]
        assert again["3d_fullres"]["unimrseg"] == {"stage1": {"num_epochs": 7}}
        assert "unimrseg" not in again["2d"]


@pytest.mark.parametrize("target", [6.0, 24.0, 60.0])
@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_the_costliest_stage_keeps_to_the_memory_target(dataset, target, name):
    plan = planned(dataset, gpu_memory_target_in_gb=target)["configurations"][name]
    settings = plan.get("unimrseg", {})
    cost = view_cost(plan["architecture"], plan["patch_size"], 4, 3, settings)
    needed = max(stage_costs(cost).values()) * plan["batch_size"]
    allowed = {"2d": 380_000_000 * 12, "3d_fullres": 2_100_000_000 * 2}[name] * target / 24
    assert needed <= allowed


def test_plans_of_another_planner_are_not_replaced(dataset):
    path = dataset / "nnUNetResEncUNetLPlans.json"
    path.write_text(json.dumps({"experiment_planner_used": "nnUNetPlannerResEncL", "configurations": {}}))
    before = path.read_text()
    with pytest.raises(UserError, match="made by the planner nnUNetPlannerResEncL"):
        UniMRSegPlanner(7, plans_name="nnUNetResEncUNetLPlans")
    assert path.read_text() == before


def test_a_target_without_any_patch_is_one_error(dataset):
    with pytest.raises(UserError, match="No patch of the configuration"):
        UniMRSegPlanner(7, gpu_memory_target_in_gb=1e-6).plan_experiment()
    assert not (dataset / f"{PLANS_NAME}.json").exists()


@pytest.mark.parametrize(
    "options",
    [{"gpu_memory_target_in_gb": 0}, {"base_features": 64}, {"base_features": 0}, {"plans_name": "nnUNetPlans"}],
)
def test_impossible_requests_are_refused(dataset, options):
    before = sorted(dataset.iterdir())
    with pytest.raises(UserError):
        UniMRSegPlanner(7, **options)
    assert sorted(dataset.iterdir()) == before


def test_one_modality_is_refused(dataset):
    raw = dataset.parents[1] / "nnUNet_raw" / DATASET / "dataset.json"
    description = json.loads(raw.read_text())
    description["channel_names"] = {"0": "T1"}
    raw.write_text(json.dumps(description))
    with pytest.raises(UserError, match="Nothing can be missing"):
        UniMRSegPlanner(7)


def test_planning_works_without_worker_processes(dataset, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert planned(dataset)["configurations"]["3d_fullres"]["batch_size"] >= 2


def test_settings_of_the_cascade_survive_planning_again(dataset):
    fingerprint = json.loads((dataset / "dataset_fingerprint.json").read_text())
    fingerprint["shapes_after_crop"] = [[500, 500, 500]] * 100
    (dataset / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plans = planned(dataset)
    plans["configurations"]["3d_cascade_fullres"]["unimrseg"] = {"stage2": {"num_epochs": 77}}
    (dataset / f"{PLANS_NAME}.json").write_text(json.dumps(plans))
    again = planned(dataset)["configurations"]["3d_cascade_fullres"]
    assert again["unimrseg"] == {"stage2": {"num_epochs": 77}}
    assert again["inherits_from"] == "3d_fullres" and again["previous_stage"] == "3d_lowres"
