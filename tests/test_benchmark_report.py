"""The report of the benchmarks: its statistics against figures made by hand, its texts, and the pages themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import benchmark_report as report
import benchmark_statistics as statistics
import benchmark_tables as tables
import numpy as np
import pytest
from benchmark_records import DATASET, RUNS, by_patient, put, read_one, record, runs_of
from benchmark_statistics import ALL, COMPLETE, INCOMPLETE, LEAVE_ONE_OUT, SINGLE
from scipy import stats

from nnunetv2_unimrseg.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path):
    """A README and a page with all blocks, without results."""
    pages = {
        "README.md": f"# Title\n\n<!-- benchmark:headline:{DATASET} -->\n<!-- /benchmark -->\n\nafter\n",
        "docs/benchmarks.md": "# Page\n\n"
        + "\nbetween\n\n".join(
            f"<!-- benchmark:{name} -->\n<!-- /benchmark -->\n"
            for name in ("cost", *(f"{kind}:{DATASET}" for kind in report.TABLES))
        ),
    }
    for name, text in pages.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(text)
    return tmp_path / "repository"


def full_grid():
    return [
        *runs_of("stock", by_patient((0.40, 0.50, 0.60, 0.70), **{"A+B+C": 0.2})),
        *runs_of("control", by_patient((0.50, 0.55, 0.65, 0.70))),
        *runs_of("three_stages", by_patient((0.56, 0.63, 0.70, 0.79))),
        *runs_of("without_x", by_patient((0.53, 0.55, 0.66, 0.70)), runs=RUNS[:2]),
    ]


def test_the_pages_of_the_repository_equal_their_results():
    assert report.problems(ROOT) == []


def test_figures_of_a_variant_are_those_made_by_hand(tmp_path):
    def dice(case, subset, label, seed):
        return 0.4 + 0.05 * int(case[1]) + 0.1 * (subset.count("+") + 1) - 0.05 * ("A" in subset) + 0.04 * seed

    own = statistics.figures(read_one(tmp_path, runs_of("control", dice)), "control")
    assert (own.runs, own.folds, own.seeds, own.patients) == (4, 2, 2, 4)
    base = 0.4 + 0.05 * 1.5 + 0.02
    single, pairs, complete = base + 0.1 - 0.05 / 3, base + 0.2 - 0.05 * 2 / 3, base + 0.3 - 0.05
    expected = {
        ALL: (3 * single + 3 * pairs + complete) / 7,
        COMPLETE: complete,
        INCOMPLETE: (single + pairs) / 2,
        LEAVE_ONE_OUT: pairs,
        SINGLE: single,
    }
    assert own.means.to_dict() == pytest.approx(expected)
    assert own.sd_over_seeds.to_dict() == pytest.approx(dict.fromkeys(expected, 0.04 / np.sqrt(2)))
    assert own.subsets.idxmin() == "A" and own.subsets.min() == pytest.approx(base + 0.05)


def test_only_seeds_with_every_fold_count_for_their_deviation(tmp_path):
    dice = lambda case, subset, label, seed: 0.5 + 0.1 * seed  # noqa: E731
    benchmark = read_one(tmp_path, runs_of("control", dice, runs=((0, 0), (1, 0), (0, 1))))
    own = statistics.figures(benchmark, "control")
    assert own.sd_over_seeds.isna().all()
    assert tables.runs_of(own) == "3 (of 2 x 2)"


def test_a_patient_counts_in_the_subsets_that_he_has(tmp_path):
    def dice(case, subset, label, seed):
        if case == "p1" and "C" in subset:
            return None
        return 0.9 if case == "p1" else 0.3

    own = statistics.figures(read_one(tmp_path, [record("control", dice=dice)]), "control")
    assert own.subsets["A"] == pytest.approx(0.6) and own.subsets["C"] == pytest.approx(0.3)
    assert own.means[SINGLE] == pytest.approx((0.6 + 0.6 + 0.3) / 3)


def test_labels_are_averaged_first_and_an_undefined_one_does_not_count(tmp_path):
    def dice(case, subset, label, seed):
        return {"core": 0.2, "whole": 0.6}[label] if case == "p0" or label == "core" else float("nan")

    benchmark = read_one(tmp_path, [record("control", dice=dice, labels=("core", "whole"))])
    assert benchmark.patients("control").loc["p0"].tolist() == pytest.approx([0.4] * 7)
    assert benchmark.patients("control").loc["p1"].tolist() == pytest.approx([0.2] * 7)


def test_differences_are_those_of_patients_with_scipys_interval(tmp_path):
    benchmark = read_one(tmp_path, full_grid())
    table = statistics.differences(benchmark, "three_stages", "control")
    gains = np.array([0.06, 0.08, 0.05, 0.09])
    expected = stats.bootstrap((gains,), np.mean, n_resamples=10_000, rng=np.random.default_rng(1)).confidence_interval
    assert table["n"].tolist() == [4] * 5
    assert table["mean"].tolist() == pytest.approx([0.07] * 5)
    assert (table["low"] > 0).all()
    assert table.loc[INCOMPLETE, ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high], abs=0.003)
    to_stock = statistics.differences(benchmark, "three_stages", "stock")["mean"]
    assert to_stock[COMPLETE] == pytest.approx(0.67 - 0.75)
    assert to_stock[ALL] == pytest.approx(0.67 - (6 * 0.55 + 0.75) / 7)


def test_differences_need_the_same_fold_and_seed(tmp_path):
    uneven = lambda case, subset, label, seed: 0.9 if seed else 0.6  # noqa: E731
    benchmark = read_one(
        tmp_path,
        [
            *runs_of("control", by_patient((0.5,) * 4), runs=((0, 0), (1, 0))),
            *runs_of("three_stages", uneven, runs=((0, 0), (0, 1))),
            *runs_of("stock", by_patient((0.5,) * 4), runs=((1, 1),)),
        ],
    )
    table = statistics.differences(benchmark, "three_stages", "control")
    assert benchmark.runs(["three_stages", "control"]) == [(0, 0)]
    assert table["n"].tolist() == [2] * 5 and table["mean"].tolist() == pytest.approx([0.1] * 5)
    assert tables.trio(benchmark) == [] and tables.headline([benchmark]) == tables.NO_RESULTS
    nothing = statistics.differences(benchmark, "three_stages", "stock")
    assert nothing["n"].tolist() == [0] * 5 and nothing["mean"].isna().all()


@pytest.mark.parametrize(
    "gains, said",
    [
        ((0.06, 0.08, 0.05, 0.09), "the three stages are better than the control: +7.0"),
        ((-0.06, -0.08, -0.05, -0.09), "the three stages are worse than the control: -7.0"),
        ((-0.06, 0.08, -0.05, 0.04), "no difference to the control is shown: +0.2"),
    ],
)
def test_the_headline_says_what_the_interval_shows(tmp_path, gains, said):
    base = np.array([0.50, 0.55, 0.65, 0.70])
    records = [*runs_of("control", by_patient(base)), *runs_of("three_stages", by_patient(base + gains))]
    text = tables.headline([read_one(tmp_path, records)])
    assert said in text and "80 passes a run: on incomplete" in text and "4 patients, 2 folds, 2 seeds)" in text
    assert "stock" not in text.replace("control: stock", "")
    assert "| P, 80 passes | control | 60.0 | 60.0 | 60.0 | 60.0 | - |" in text
    assert "|  | all three stages |" in text


def test_the_tables_show_the_figures(repository):
    put(repository / report.ACCURACY, full_grid())
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    stock = "| stock nnU-Net | 4 (2 x 2) | 4 | 57.9 ± 0.0 | 75.0 ± 0.0 | 55.0 ± 0.0 | 55.0 ± 0.0 | 55.0 ± 0.0 | 7.0 |"
    assert stock in page
    assert "| all three stages - control | 4 | +7.0 (" in page
    assert "| ○ | ● | ○ | 55.0 | 60.0 | 67.0 | +7.0 (" in page and "| ● | ● | ● | 75.0 | 60.0 | 67.0 |" in page
    row = "| `without_x` | without_x: in words | `three_stages` | worse | 2 | 54.0 | 59.5 | -5.5 (-8.0 to -3.0) | -5.5"
    assert row in page
    assert "| patch | 8 x 8 x 4 voxels |" in page
    assert "| `control` | stage2 4 | stage2: initial_lr 0.03 | 80 | 10 | 1.00 |" in page
    readme = (repository / "README.md").read_text()
    assert "|  | all three stages | 67.0 | 67.0 | 67.0 | 67.0 | +7.0 (" in readme and readme.endswith("\n\nafter\n")
    assert page.count("\nbetween\n") == 5


@pytest.mark.parametrize("with_default", [False, True])
def test_changes_of_the_earlier_default_are_compared_with_it(repository, with_default):
    earlier = [
        *runs_of("control", by_patient((0.50, 0.55, 0.65, 0.70))),
        *runs_of("earlier_default", by_patient((0.53, 0.56, 0.69, 0.74))),
        *runs_of("earlier_no_adapters", by_patient((0.51, 0.53, 0.68, 0.72))),
    ]
    default = runs_of("three_stages", by_patient((0.56, 0.63, 0.70, 0.79))) if with_default else []
    benchmark = read_one(repository / report.ACCURACY, [*earlier, *default])
    against_default = {"three_stages": ["earlier_default"]} if with_default else {}
    assert tables.ablated(benchmark) == {**against_default, "earlier_default": ["earlier_no_adapters"]}
    assert tables.trio(benchmark) == ["control", "three_stages" if with_default else "earlier_default"]
    assert (tables.headline([benchmark]) != tables.NO_RESULTS) == with_default
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    assert "| no adapters: the decoder alone learns | `earlier_default` | worse | 4 | 61.0 | 63.0 |" in page
    assert ("| `three_stages` | worse | 4 | 63.0 | 67.0 | -4.0 (" in page) == with_default
    assert "| all three stages, earlier default - control | 4 | +3.0 (" in page
    assert len(report.plots_of(benchmark)) == 2 + with_default


def test_a_change_of_an_earlier_default_is_not_compared_with_another(tmp_path):
    variants = ("three_stages", "annealed_no_adapters")
    benchmark = read_one(tmp_path, [one for name in variants for one in runs_of(name, by_patient((0.5,) * 4))])
    assert tables.ablated(benchmark) == {}
    assert report.block(f"parts:{DATASET}", [benchmark], tmp_path) == tables.NO_RESULTS


def test_a_setting_without_ablations_leaves_their_table_to_the_others(repository):
    put(repository / report.ACCURACY, [*full_grid(), record("control", plans="Q")])
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    assert "| `without_x` |" in page
    assert page.count("No results yet.") == 1  # of the costs


@pytest.mark.parametrize("variant", ["stock", "control", "three_stages", "without_x"])
def test_a_single_variant_is_enough_for_a_page(repository, variant):
    put(repository / report.ACCURACY, runs_of(variant, by_patient((0.5, 0.6, 0.7, 0.8)), runs=RUNS[:1]))
    report.write(repository)
    assert report.problems(repository) == []
    assert f"| `{variant}` | stage2 4 |" in (repository / "docs/benchmarks.md").read_text()


def test_an_interrupted_training_counts_as_long_as_a_whole_one():
    one = record("control")
    one["trainings"][0] |= {"seconds": 5.0, "epochs_of_these_seconds": 1}
    assert statistics.seconds(one) == 20.0
    one["trainings"][0]["epochs_of_these_seconds"] = 0
    assert np.isnan(statistics.seconds(one))


def test_the_check_names_what_differs_and_writes_nothing(repository):
    report.write(repository)
    assert report.problems(repository) == []
    put(repository / report.ACCURACY, full_grid())
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    found = report.problems(repository)
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before
    for name in (f"README.md: headline:{DATASET}", f"benchmarks.md: main:{DATASET}", "by_number.png is not there"):
        assert any(line.endswith(name) for line in found), name
    assert not any(line.endswith(": cost") for line in found)

    report.write(repository)
    assert report.problems(repository) == []
    page = repository / "docs/benchmarks.md"
    page.write_text(page.read_text().replace("| 2 | 54.0 |", "| 2 | 54.1 |"))
    assert report.problems(repository) == [f"{page}: ablations:{DATASET}"]
    command = [sys.executable, ROOT / "scripts" / "benchmark_report.py", "--repository", repository]
    failed = subprocess.run([*command, "--check"], capture_output=True, text=True)
    assert failed.returncode == 1 and f"{page}: ablations:{DATASET}" in failed.stderr
    assert subprocess.run(command).returncode == 0
    assert subprocess.run([*command, "--check"]).returncode == 0


def test_parts_are_shown_by_what_they_bring(tmp_path):
    results = [
        *runs_of("three_stages", by_patient((0.50, 0.60, 0.70, 0.80))),
        *runs_of("no_contrast", by_patient((0.48, 0.60, 0.68, 0.80), **{"A+B+C": -0.02})),
        *runs_of("stock", by_patient((0.40, 0.50, 0.60, 0.70))),
    ]
    longer = runs_of("three_stages", by_patient((0.5,) * 4), budget=160)
    longer += runs_of("no_adapters", by_patient((0.6,) * 4), runs=RUNS[:1], budget=160)
    text = report.block(f"parts:{DATASET}", statistics.read_results(put(tmp_path, results + longer)), tmp_path)
    contrast, adapters = text.splitlines()[2:]
    assert contrast.startswith("| contrastive loss | `three_stages` - `no_contrast` | P, 80 passes | 4 | +1.0 (")
    assert "| +3.0 (" in contrast
    assert adapters.startswith("| adapters | `three_stages` - `no_adapters` | P, 160 passes | 1 | -10.0")
    assert report.block("parts:Dataset001_Other", [], tmp_path) == tables.NO_RESULTS


def test_added_results_are_small_and_complete(repository, tmp_path):
    third = lambda case, subset, label, seed: None if case == "p1" and subset == "A" else 1 / 3  # noqa: E731
    source = put(tmp_path / "results", [record("control", dice=third)])
    (file,) = source.glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()), indent=1))
    assert report.add(source, repository) == 1
    (copy,) = (repository / report.ACCURACY).glob("*.json")
    assert copy.name == file.name and copy.stat().st_size < 0.6 * file.stat().st_size
    original, stored = json.loads(file.read_text()), json.loads(copy.read_text())
    scores = stored.pop("scores")
    assert [dict(zip(scores["columns"], row, strict=True)) for row in scores["data"]] == [
        {**row, "dice": 0.3333} for row in original.pop("scores")
    ]
    assert stored == original
    (benchmark,) = statistics.read_results(repository / report.ACCURACY)
    assert benchmark.patients("control").loc["p1"].isna().tolist() == [True] + [False] * 6
    text = copy.read_text()
    assert report.add(repository / report.ACCURACY, repository) == 1 and copy.read_text() == text
    with pytest.raises(UserError, match="no result files"):
        report.add(tmp_path / "empty", repository)
    other = put(tmp_path / "other", [record("control", dataset="Dataset001_Other")])
    with pytest.raises(UserError, match=r"Dataset001_Other are shown nowhere.*Put this line"):
        report.add(other, repository)
    assert list((repository / report.ACCURACY).glob("*.json")) == [copy]


@pytest.mark.parametrize(
    "second, message",
    [
        (record("stock", batch_size=4), "'batch_size' is 4, but 2 in control, fold 0, seed 0"),
        (record("stock", prediction="as nnU-Net"), "'prediction'"),
        (record("control"), "two results of the same run"),
        (record("control", seed=1, trainings=[{**record("control")["trainings"][0], "passes": 90}]), "other settings"),
        (record("stock", trainings=[{"settings": {"initial_lr": 0.01}}]), "learning rate is 0.01, but 0.03 in control"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(tmp_path, second, message):
    put(tmp_path, [record("control"), second])
    with pytest.raises(UserError, match=message):
        statistics.read_results(tmp_path)


def test_each_plan_and_budget_has_tables_and_rows_of_the_headline(repository):
    others = {"budget": 1000, "dice": by_patient((0.7,) * 4)}, {"plans": "Q", "patch_size": [4, 4, 4]}
    put(repository / report.ACCURACY, [record("control"), *(record("control", **other) for other in others)])
    report.write(repository)
    page, readme = ((repository / name).read_text() for name in ("docs/benchmarks.md", "README.md"))
    for setting in (
        "P, 3d_fullres, patch 8 x 8 x 4, 80",
        "P, 3d_fullres, patch 8 x 8 x 4, 1000",
        "Q, 3d_fullres, patch 4 x 4 x 4, 80",
    ):
        assert page.count(f"{DATASET}, {setting} passes a run:") == 3
    for row in ("P, 80 passes | control | 50.0", "P, 1000 passes | control | 70.0", "Q, 80 passes | control | 50.0"):
        assert readme.count(f"| {row} |") == 1
    assert readme.count("| setting |") == 1


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- benchmark:mian:D -->\n<!-- /benchmark -->\n", "There is no block 'benchmark:mian:D'"),
        ("<!-- benchmark:cost -->\n", "needs a '<!-- /benchmark -->'"),
        ("<!-- /benchmark -->\n", "and the reverse"),
        ("nothing\n", f"results of {DATASET} are shown nowhere"),
    ],
)
def test_wrong_markers_are_named(repository, text, message):
    put(repository / report.ACCURACY, [record("control")])
    (repository / "docs/benchmarks.md").write_text(text)
    with pytest.raises(UserError, match=message):
        report.problems(repository)


def test_cost_tables_are_shown(repository):
    measured = {
        "hardware": "2 cores",
        "versions": {"torch": "2.9", "python": "3.11"},
        "command": "python scripts/benchmark_cost.py",
        "tables": [{"title": "training step", "columns": ["what", "seconds"], "rows": [["a|b", 1.5]], "note": "n = 3"}],
    }
    (repository / report.COST).mkdir(parents=True)
    (repository / report.COST / "cpu.json").write_text(json.dumps(measured))
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    assert "2 cores; torch 2.9, python 3.11; python scripts/benchmark_cost.py\n" in page
    assert "**training step**\n\n| what | seconds |\n| :-- | --: |\n| a\\|b | 1.5 |\n\nn = 3\n" in page


def test_plots_show_the_figures(tmp_path):
    benchmark = read_one(tmp_path, full_grid())
    plots = {name.rpartition("80_")[2]: draw() for name, (_, draw) in report.plots_of(benchmark).items()}
    (axes,) = plots["by_number.png"].axes
    stock, control, three_stages = axes.lines
    assert stock.get_ydata() == pytest.approx([55, 55, 75]) and control.get_ydata() == pytest.approx([60] * 3)
    assert three_stages.get_label() == "all three stages" and three_stages.get_ydata() == pytest.approx([67] * 3)
    (axes,) = plots["ablations.png"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["without_x: in words"]
    _, incomplete, complete = axes.lines
    assert incomplete.get_xdata() == pytest.approx([-5.5]) and complete.get_xdata() == pytest.approx([-5.5])
    (low, _), (high, _) = axes.collections[0].get_segments()[0]
    assert (low, high) == pytest.approx((-8, -3))
