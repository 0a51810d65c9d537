"""The cost benchmark on tiny plans: passes, targets, counts, memory in a fresh process, tables and the JSON file."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from benchmarks import cost
from benchmarks.cost_counts import count_network, count_plans, multiply_adds, reference_plans
from benchmarks.cost_measures import (
    Contender,
    Plans,
    make_trainer,
    median_seconds,
    peak_memory,
    prediction_networks,
    random_batch,
    scratch_folders,
    training_step,
)
from networks import unet
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

pytestmark = pytest.mark.benchmarks

LABELS = {
    "classes": {"labels": {"background": 0, "whole": 1, "core": 2}},
    "regions": {
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "regions_class_order": [1, 2],
    },
}


@pytest.fixture
def plans(monkeypatch) -> Plans:
    monkeypatch.delenv("nnUNet_compile", raising=False)
    made = Plans(tiny.plans(), "3d_fullres", tiny.dataset_json())
    architecture = made.entries["architecture"]
    architecture["arch_kwargs"].update(
        n_stages=3, features_per_stage=[4, 8, 12], kernel_sizes=[[3, 3, 3]] * 3, n_conv_per_stage=[1, 1, 1],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], n_conv_per_stage_decoder=[1, 1],
    )  # fmt: skip
    return made.changed(architecture=architecture)


def test_multiply_adds_are_those_of_a_convolution():
    layer = nn.Conv3d(3, 5, (3, 1, 3), padding=(1, 0, 1))
    assert multiply_adds(layer, torch.zeros(2, 3, 4, 6, 8)) == 2 * 5 * 4 * 6 * 8 * 3 * 9


def test_counts_tell_adapters_apart():
    network = unet()
    counts = count_network(network, torch.zeros(1, 4, 16, 16, 16))
    assert counts.parameters == sum(value.numel() for value in network.parameters())
    assert counts.adapter_parameters == sum(value.numel() for value in network.adapters.parameters())
    without = count_network(unet(adapters=False), torch.zeros(1, 4, 16, 16, 16))
    assert without.adapter_parameters == 0
    assert without.complete == without.incomplete == counts.complete < counts.incomplete
    assert without.parameters == counts.parameters - counts.adapter_parameters


def test_reference_network_is_the_one_that_the_published_figures_compare_with(plans):
    blocks = {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}
    stock, own = count_plans(reference_plans(plans.with_modalities(2), "PlainConvUNet", blocks))
    assert stock.complete / 1e12 == pytest.approx(0.48, abs=0.005)
    assert own.complete == stock.complete
    assert own.parameters - own.adapter_parameters == stock.parameters


@pytest.mark.parametrize(
    ("section", "settings", "passes"),
    [
        (None, {}, 2),
        ("stage1", {}, 2),
        ("stage2", {"pairs_every": 1}, pytest.approx(7 / 3)),
        ("stage3", {"pairs_every": 1, "subsets_per_step": 3}, 8),
        ("stage3", {"pairs_every": 1, "subsets_per_step": "all"}, 30),
    ],
)
def test_passes_of_a_step(plans, section, settings, passes):
    assert Contender(section, settings).passes(plans) == passes


def test_plans_change_without_changing_the_originals(plans):
    before = json.dumps([plans.plans, plans.dataset_json])
    more = plans.with_modalities(8).with_settings("stage3", {"subsets_per_step": 2})
    assert (more.num_modalities, more.patch_shape) == (8, (1, 8, 16, 16, 16))
    assert more.with_settings("stage3", {"feature_weight": 0.0}).entries["unimrseg"] == {
        "stage3": {"subsets_per_step": 2, "feature_weight": 0.0}
    }
    assert json.dumps([plans.plans, plans.dataset_json]) == before


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("section", [None, "stage1", "stage2", "stage3", "modality_dropout"])
def test_every_trainer_learns_from_the_random_batch(plans, section, labels):
    settings = {"cpu_precision": "float32"} if section else {}
    settings |= cost.PAIRS.get(section, {}) | ({"subsets_per_step": 2} if section == "stage3" else {})
    plans = Plans(plans.plans, plans.configuration, {**plans.dataset_json, **LABELS[labels]})
    seen = []
    with scratch_folders(plans):
        batch = random_batch(make_trainer(plans, Contender(), "cpu"))
        trainer = make_trainer(plans, Contender(section, settings), "cpu")
        assert isinstance(trainer, nnUNetTrainer)
        assert (type(trainer) is nnUNetTrainer) == (section is None)
        trainer.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
        before = [value.clone() for value in trainer.network.parameters()]
        training_step(trainer, batch)()
    views = {"stage3": [2, 2, 2]}.get(section, [2])
    assert seen == [(samples, 4, 16, 16, 16) for samples in views]
    after = trainer.network.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(torch.isfinite(value).all() for value in trainer.network.parameters())


def test_random_batch_has_every_label_and_resolution(plans):
    with scratch_folders(plans):
        batch = random_batch(make_trainer(plans, Contender(), "cpu"))
    assert [scale.shape for scale in batch["target"]] == [(2, 1, edge, edge, edge) for edge in (16, 8)]
    assert set(batch["target"][0].unique().tolist()) == {0, 1, 2}
    assert len(set(batch["keys"])) == len(batch["data"]) == 2


def test_folders_are_as_before(plans, monkeypatch):
    results, preprocessed = "nnUNet_results", "nnUNet_preprocessed"
    monkeypatch.setenv(results, "before")
    monkeypatch.delenv(preprocessed, raising=False)
    with pytest.raises(ZeroDivisionError), scratch_folders(plans):
        folder = Path(os.environ[results])
        assert folder.is_dir()
        raise ZeroDivisionError
    assert os.environ[results] == "before"
    assert preprocessed not in os.environ
    assert not folder.exists()


def test_turns_are_taken_and_the_first_does_not_count(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def step(name: str, durations: list[float]) -> None:
        calls.append(name)
        clock[0] += durations[calls.count(name) - 1]

    steps = {"a": lambda: step("a", [90, 1, 5, 2]), "b": lambda: step("b", [80, 10, 30, 20])}
    assert median_seconds(steps, 3, "cpu") == {"a": 2, "b": 20}
    assert calls == ["a", "b"] * 4


def test_prediction_takes_the_networks_of_the_plans(plans):
    networks = prediction_networks(plans.with_modalities(3))
    patch = torch.zeros(1, 3, 16, 16, 16)
    assert networks["stage3"].adapters is not None
    assert {name: tuple(network(patch).shape) for name, network in networks.items()} == dict.fromkeys(
        ("stock", "stage3"), (1, 3, 16, 16, 16)
    )


def test_targets_are_held_against_ratios_in_proportion_to_the_passes():
    assert cost.step_cells(1.1, 1.0, 2, 2, "stage2") == ("2", "1.100", "1.10", "1.15", "yes", "1.10")
    assert cost.step_cells(1.2, 1.0, 2, 2, "stage2") == ("2", "1.200", "1.20", "1.15", "no", "1.20")
    assert cost.step_cells(1.8, 1.0, 8, 2, "stage3")[3:5] == ("3.60", "yes")
    assert cost.step_cells(1.5, 1.0, 2, 2, None) == ("2", "1.500", "1.50", "-", "-", "1.50")


def test_subsets_of_two_modalities_are_both_of_them(plans):
    assert list(cost.students(plans.with_modalities(2), "auto")) == ["1", "all (2)"]
    assert list(cost.students(plans, "auto")) == ["1", "2", "3", "all (14)"]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_memory_is_what_the_step_keeps_and_little_more(plans, fresh_processes):  # how malloc works is set at start
    plans = plans.changed(patch_size=[32, 32, 32], batch_size=8)
    peak, _ = peak_memory(plans, Contender("modality_dropout", {"cpu_precision": "float32"}), "cpu")
    convolutions = prediction_networks(plans)["stock"].compute_conv_feature_map_size((32, 32, 32)) * 4 * 8
    assert convolutions < peak < 6 * convolutions


@pytest.mark.parametrize(("device", "first_reserved", "third_reserved"), [("cpu", "-", "-"), ("cuda", "300", "310")])
def test_memory_is_held_against_the_target_of_the_plans(plans, monkeypatch, device, first_reserved, third_reserved):
    needed = {None: (100e6, 150e6), "stage3": (250e6, 310e6)}
    monkeypatch.setattr(cost, "peak_memory", lambda _, contender, __: needed.get(contender.section, (200e6, 300e6)))
    args = SimpleNamespace(precision="auto", device=device)
    of_planner = replace(plans, plans={**plans.plans, "unimrseg_planning": {"gpu_memory_target_in_gb": 0.3}})
    for these, target, kept in ((of_planner, "300", ("yes", "no")), (plans, "-", ("-", "-"))):
        rows = {name: cells for name, *cells in cost.memory_table(these, args).rows}
        assert rows["stage 1"] == ["200", "2.00", first_reserved, target, kept[0]]
        assert rows["stage 3, a step with pairs"] == ["250", "2.50", third_reserved, target, kept[1]]


def test_command_prints_and_writes_the_tables(plans, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "preprocessed" / "Dataset998_Tiny"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans.plans))
    (folder / "dataset.json").write_text(json.dumps(plans.dataset_json))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    output = tmp_path / "cost.json"
    words = ["cost.py", "-d", "998", "--rounds", "1", "--measure", "steps", "prediction", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", words)
    cost.main()
    record = json.loads(output.read_text())
    assert record["command"] == "python -m scripts.benchmarks.cost " + " ".join(words[1:])
    assert {"device", "hardware", "versions"} <= set(record)
    steps, prediction = record["tables"]
    assert [row[0] for row in steps["rows"]] == list(cost.contenders("float32"))
    assert [row[1] for row in steps["rows"]] == ["2", "2", "2", "2.33333", "4"]
    assert steps["rows"][0][3] == "1.00"
    assert len(prediction["rows"]) == 3
    printed = capsys.readouterr().out
    for table in record["tables"]:
        assert set(table) == {"title", "columns", "rows", "note"}
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
        assert all(f"| {' | '.join(row)} |" in printed for row in table["rows"])
