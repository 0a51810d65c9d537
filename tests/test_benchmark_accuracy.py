"""The accuracy benchmark: its variants, what trainings share, the order of work, and a run on the tiny phantom."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import accuracy as benchmark
from benchmarks import report
from benchmarks.variants import (
    CONTROL,
    SHARES,
    STAGE_1,
    STAGE_2,
    STAGE_3,
    STAGES_1_2,
    STOCK,
    THREE_STAGES,
    VARIANTS,
    Variant,
)

from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.method.augmentation import draw_subsets
from nnunetv2_unimrseg.method.step_cost import passes_per_sample
from nnunetv2_unimrseg.stages import STAGES

pytestmark = pytest.mark.benchmarks
ROOT = Path(__file__).parents[1]


def options(**changed: object) -> argparse.Namespace:
    given = {"p": "Plans", "c": "3d_fullres", "passes": 1000, "epochs": 40, "initial_lr": None}
    return argparse.Namespace(**{**given, **changed})


def chain(variant: str, fold: int = 0, seed: int = 0, **changed: object) -> tuple[benchmark.Task, ...]:
    return benchmark.make_chain(variant, options(**changed), "Dataset998_Tiny", fold, seed)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_spend_the_budget_on_settings_that_exist(name):
    variant = VARIANTS[name]
    assert sum(variant.shares.values()) == pytest.approx(1)
    assert set(variant.settings) <= set(variant.shares)
    changed = UniMRSegConfig.from_dict(variant.settings)
    others = [(other.shares, UniMRSegConfig.from_dict(other.settings)) for other in VARIANTS.values()]
    assert others.count((variant.shares, changed)) == 1
    assert sum(task.passes for task in chain(name)) == pytest.approx(1000, abs=2)


@pytest.mark.parametrize("num_modalities", [2, 3, 4])
def test_shares_of_the_three_stages_are_those_of_the_defaults(num_modalities):
    config = UniMRSegConfig()
    settings = {stage: getattr(config, stage) for stage in STAGES}
    passes = {stage: own.num_epochs * passes_per_sample(own, num_modalities) for stage, own in settings.items()}
    total = sum(passes.values())
    assert {stage: value / total for stage, value in passes.items()} == pytest.approx(SHARES, abs=2e-5)  # whole epochs


def test_stock_sees_complete_input_only_and_the_control_every_subset_alike():
    stock, control = (UniMRSegConfig.from_dict(VARIANTS[name].settings).modality_dropout for name in (STOCK, CONTROL))
    assert draw_subsets(1000, 3, stock).all()
    counts = torch.unique(draw_subsets(7000, 3, control), dim=0, return_counts=True)[1]
    assert len(counts) == 7
    assert (counts - 1000).abs().max() < 200


def test_stages_1_and_2_alone_have_all_of_the_budget():
    first, second = chain(STAGES_1_2)
    assert first.name == chain(THREE_STAGES)[0].name
    assert second.passes == sum(task.passes for task in chain(THREE_STAGES)[1:])
    assert second.settings["stage2"]["final_lr"] == 0


@pytest.mark.parametrize("name", [*STAGE_1, *STAGE_2, *STAGE_3])
def test_an_ablation_changes_one_thing(name):
    variant = VARIANTS[name]
    changed = [value for settings in variant.settings.values() for value in settings]
    if variant.shares == SHARES:
        assert len(changed) == 1
    else:
        assert set(changed) <= {"final_lr"}


def test_ablations_of_stage_3_share_the_stages_before_it():
    first, second, _ = chain(THREE_STAGES)
    for name in STAGE_3:
        assert chain(name)[:2] == (first, second)
    assert {chain(name)[0].name == first.name for name in STAGE_2} == {True}
    assert {chain(name)[1].name == second.name for name in STAGE_2} == {False}
    assert {chain(name)[0].name == first.name for name in STAGE_1} == {False}


def test_one_decay_of_the_learning_rate_goes_over_stages_2_and_3():
    _, second, third = chain(THREE_STAGES)
    assert second.settings["stage2"]["final_lr"] == third.settings["stage3"]["initial_lr"] > 0


def test_stage_3_goes_on_after_the_control_as_after_stage_2():
    control, third = chain("after_control")
    assert control.settings["modality_dropout"]["final_lr"] == third.settings["stage3"]["initial_lr"] > 0


@pytest.mark.parametrize("changed", [{"fold": 1}, {"seed": 1}, {"passes": 2000}, {"epochs": 20}, {"initial_lr": 0.03}])
def test_what_differs_is_trained_anew(changed):
    assert chain(THREE_STAGES, **changed)[-1].name != chain(THREE_STAGES)[-1].name


def test_learning_rates_scale_together():
    rates = [task.settings[task.section]["initial_lr"] for task in chain(THREE_STAGES)]
    scaled = [task.settings[task.section]["initial_lr"] for task in chain(THREE_STAGES, initial_lr=0.03)]
    assert scaled == pytest.approx([3 * rate for rate in rates])


def jobs(*names_and_before: tuple[str, str | None]) -> list[benchmark.Job]:
    return [(name, before, print, ()) for name, before in names_and_before]


def test_work_keeps_the_order_and_leaves_what_follows_a_failure(monkeypatch, tmp_path):
    done = []

    def run(_function, log, _given):
        if log.stem == "bad":
            raise RuntimeError("no memory")
        done.append(log.stem)

    monkeypatch.setattr(benchmark, "in_process", run)
    todo = jobs(("c", "b"), ("b", "a"), ("a", None), ("bad", None), ("later", "bad"), ("d", "finished before"))
    assert benchmark.work(todo, tmp_path, 2) == ["bad", "later"]
    assert sorted(done) == ["a", "b", "c", "d"]
    assert done.index("a") < done.index("b") < done.index("c")


def test_a_process_that_dies_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3"):
        benchmark.in_process(sys.exit, tmp_path / "logs" / "job.txt", (3,))


def test_trainings_are_done_once_and_results_are_kept(tmp_path):
    runs = [benchmark.Run(name, 1000, chain(name)) for name in (THREE_STAGES, "no_adapters", CONTROL)]
    named = [name for name, *_ in benchmark.pending_jobs(runs, tmp_path, "cpu", 1)]
    assert len(named) == len(set(named)) == 3 + 1 + 1 + 3
    finished = runs[0].result(tmp_path)
    finished.parent.mkdir()
    finished.write_text("{}")
    stage_1 = runs[0].chain[0]
    folder = stage_1.model_folder(tmp_path) / "fold_0"
    folder.mkdir(parents=True)
    (folder / benchmark.DONE).write_text("{}")
    left = {name: before for name, before, *_ in benchmark.pending_jobs(runs, tmp_path, "cpu", 1)}
    assert finished.stem not in left
    assert stage_1.name not in left
    assert left[runs[1].result(tmp_path).stem] == runs[1].chain[-1].name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-d", "1", "-o", "x", "--passes", "10", "--variants", "contrl"], "no variant 'contrl'"),
        (["-d", "1", "-o", "x"], "--passes is missing"),
        ([], "-d is missing; -o is missing"),
    ],
)
def test_bad_input_is_one_error(monkeypatch, words, told):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *words])
    with pytest.raises(SystemExit, match=told):
        benchmark.main()


def test_list_names_every_variant(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--list"])
    benchmark.main()
    printed = capsys.readouterr().out
    assert all(f"{name}: {variant.about}" in printed for name, variant in VARIANTS.items())


def test_settings_of_a_variant_reach_its_training(monkeypatch):
    monkeypatch.setitem(VARIANTS, "tiny", Variant("tiny", {"stage2": 1.0}, {"stage2": {"pairs_every": 2}}))
    (task,) = chain("tiny")
    assert task.settings["stage2"]["pairs_every"] == 2
    assert replace(task, seed=5).name != task.name


PUBLISHED = sorted((ROOT / report.ACCURACY).glob("*.json"))


def test_published_results_are_those_of_the_variants_whose_names_they_have():
    assert PUBLISHED
    for path in PUBLISHED:
        record = json.loads(path.read_text())
        shares, changed = VARIANTS[record["variant"]].shares, VARIANTS[record["variant"]].settings
        measured = {training["section"]: training["settings"] for training in record["trainings"]}
        assert list(measured) == list(shares)
        passes = {training["section"]: training["passes"] / record["budget"] for training in record["trainings"]}
        assert passes == pytest.approx(shares, rel=0.06), path.name
        rate = record["trainings"][0]["settings"]["initial_lr"]
        for section, settings in measured.items():
            own = benchmark.all_settings(section, changed.get(section, {}))
            own = {name: value for name, value in own.items() if name in settings}  # some are newer than these results
            own.pop("unlabelled_share", None)  # every case of the published datasets has a label
            assert settings == {**settings, **benchmark.scaled_learning_rates(own, rate)}, path.name


@pytest.mark.integration
def test_benchmark_of_the_tiny_phantom(workspace, tmp_path):
    command = [
        "python", "-m", "scripts.benchmarks.accuracy", "-d", workspace.dataset, "-p", workspace.plans, "-f", 0,
        "--seeds", 0, "--passes", 200, "--epochs", 4, "--variants", THREE_STAGES, STOCK, "no_adapters", "-o", tmp_path,
        "-device", "cpu",
    ]  # fmt: skip
    workspace.run(*command, PYTHONPATH=str(ROOT))
    files = sorted((tmp_path / "results").iterdir())
    results = {result["variant"]: result for result in (json.loads(path.read_text()) for path in files)}
    assert set(results) == {THREE_STAGES, STOCK, "no_adapters"}
    for result in results.values():
        assert sum(training["passes"] for training in result["trainings"]) == pytest.approx(200, rel=0.1)
        assert {score["subset"] for score in result["scores"]} == {subset["name"] for subset in result["subsets"]}
        assert len(result["subsets"]) == 2 ** len(result["modalities"]) - 1
    first, second = (results[name]["trainings"] for name in (THREE_STAGES, "no_adapters"))
    assert first[:2] == second[:2]
    assert first[2]["settings"]["adapters"] and not second[2]["settings"]["adapters"]
    before = {path: path.stat().st_mtime_ns for path in files}
    workspace.run(*command, PYTHONPATH=str(ROOT))
    assert {path: path.stat().st_mtime_ns for path in files} == before
