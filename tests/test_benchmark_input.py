"""What the accuracy benchmark says before it trains: missing data, results of other settings, uneven budgets."""

from __future__ import annotations

import argparse
import json
import sys

import pytest
import tiny
from benchmarks import accuracy as benchmark
from benchmarks.input import find_planned_dataset, refuse_other_settings, uneven_budgets

from nnunetv2_unimrseg.errors import UserError

pytestmark = pytest.mark.benchmarks

DATASET = "Dataset998_Tiny"


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A planned dataset of two folds with one preprocessed case."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        (tmp_path / variable / DATASET).mkdir(parents=True)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_preprocessed" / DATASET
    (folder / "Plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    (folder / "splits_final.json").write_text(json.dumps([{"train": [], "val": []}] * 2))
    (folder / "nnUNetPlans_3d_fullres").mkdir()
    (folder / "nnUNetPlans_3d_fullres" / "case.pkl").touch()
    return folder


def options(**changed: object) -> argparse.Namespace:
    given = {"d": "998", "p": "Plans", "c": "3d_fullres", "f": [0], "device": "cpu"}
    return argparse.Namespace(**{**given, "passes": 1000, "epochs": 40, "initial_lr": None, **changed})


def run(variant: str = "control", **changed: object) -> benchmark.Run:
    args = options(**changed)
    return benchmark.Run(variant, args.passes, benchmark.make_chain(variant, args, DATASET, 0, 0))


def test_a_planned_dataset_is_found_by_its_number(dataset):
    assert find_planned_dataset(options(f=[0, 1])) == DATASET


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"d": "997"}, "Dataset 997 is not in nnUNet_raw"),
        ({"p": "Plan"}, "no plans 'Plan'.*Did you mean 'Plans'"),
        ({"c": "3d_lowres"}, "3d_lowres.*Did you mean '3d_fullres'"),
        ({"f": [1, 2, 7]}, f"no fold 2, 7: {DATASET} has the folds 0 to 1"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_trained(dataset, changed, told):
    with pytest.raises(UserError, match=told):
        find_planned_dataset(options(**changed))


def test_a_dataset_that_is_not_preprocessed_and_a_device_that_is_not_there_are_refused(dataset, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="-device cpu"):
        find_planned_dataset(options(device="cuda"))
    (dataset / "nnUNetPlans_3d_fullres" / "case.pkl").unlink()
    with pytest.raises(UserError, match="not preprocessed for 3d_fullres of Plans"):
        find_planned_dataset(options())


def test_the_command_ends_with_one_line(dataset, monkeypatch, tmp_path):
    words = ["-d", "998", "-p", "Plan", "-o", str(tmp_path), "--passes", "10", "-device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *words])
    with pytest.raises(SystemExit, match=r"^accuracy.py: error: There are no plans 'Plan'"):
        benchmark.main()


def result_of(own: benchmark.Run, output, **changed: object) -> None:
    path = own.result(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    trainings = [
        {"section": task.section, "settings": task.settings[task.section], "epochs": task.epochs} for task in own.chain
    ]
    record = {"patch_size": [16, 16, 16], "batch_size": 2, "trainings": trainings, **changed}
    path.write_text(json.dumps(record))


def test_results_of_the_same_settings_are_kept(dataset, tmp_path):
    for variant in ("control", "three_stages"):
        result_of(run(variant), tmp_path)
    refuse_other_settings([run("control"), run("three_stages"), run("stock")], tmp_path)


@pytest.mark.parametrize(
    ("now", "then", "told"),
    [
        ({"initial_lr": 0.03}, {}, r"modality_dropout.initial_lr was 0.01, and is 0.03 now"),
        ({"epochs": 20}, {}, r"modality_dropout: epochs was 40, and is 20 now"),
        ({}, {"batch_size": 4}, r"batch_size was 4, and is 2 now"),
    ],
)
def test_results_of_other_settings_are_not_taken_for_those_asked_for(dataset, tmp_path, now, then, told):
    result_of(run(), tmp_path, **then)
    with pytest.raises(UserError, match=told):
        refuse_other_settings([run(**now)], tmp_path)


def test_a_result_with_other_trainings_is_refused_too(dataset, tmp_path):
    own = run()
    result_of(own, tmp_path, trainings=[])
    with pytest.raises(UserError, match=r"was None, and is"):
        refuse_other_settings([own], tmp_path)


def test_budgets_that_whole_steps_miss_are_told(dataset):
    (remark,) = uneven_budgets([run("three_stages", passes=60, epochs=40), run("control", passes=80)])
    one_step_an_epoch = 2 * 2 + 35 * 2 * 13 / 12 + 4 * 2 * 2
    assert remark.startswith(f"three_stages takes {one_step_an_epoch:g} passes instead of 60")
    assert uneven_budgets([run(name, passes=8000) for name in ("control", "three_stages")]) == []
