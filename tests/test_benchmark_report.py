"""The report of the benchmarks: its statistics against figures made by hand, its texts, and the pages themselves."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from benchmark_records import DATASET, RUNS, by_patient, make_runs, put, read_one, record
from benchmarks import paired_statistics as statistics
from benchmarks import report, tables
from benchmarks.paired_statistics import ALL, COMPLETE, INCOMPLETE, LEAVE_ONE_OUT, SINGLE
from conftest import PYTHON
from scipy import stats

from nnunetv2_unimrseg.errors import UserError

pytestmark = pytest.mark.benchmarks
ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path):
    """A README with the line of results and a page with all blocks, without results."""
    pages = {
        "README.md": "# Title\n\n<!-- benchmark:line -->\n<!-- /benchmark -->\n\nafter\n",
        "docs/benchmarks.md": "# Page\n\n"
        + "\nbetween\n\n".join(
            f"<!-- benchmark:{name} -->\n<!-- /benchmark -->\n" for name in ("cost", "plots", *tables.TABLES)
        ),
    }
    for name, text in pages.items():
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(text)
    return tmp_path / "repository"


def full_grid():
    return [
        *make_runs("stock", by_patient((0.40, 0.50, 0.60, 0.70), **{"A+B+C": 0.2})),
        *make_runs("control", by_patient((0.50, 0.55, 0.65, 0.70))),
        *make_runs("three_stages", by_patient((0.56, 0.63, 0.70, 0.79))),
        *make_runs("without_x", by_patient((0.53, 0.55, 0.66, 0.70)), runs=RUNS[:2]),
    ]


def test_the_pages_of_the_repository_equal_their_results():
    assert report.problems(ROOT) == []


def test_figures_of_a_variant_are_those_made_by_hand(tmp_path):
    def dice(case, subset, label, seed):
        return 0.4 + 0.05 * int(case[1]) + 0.1 * (subset.count("+") + 1) - 0.05 * ("A" in subset) + 0.04 * seed

    own = statistics.variant_dice(read_one(tmp_path, make_runs("control", dice)), "control")
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
    benchmark = read_one(tmp_path, make_runs("control", dice, runs=((0, 0), (1, 0), (0, 1))))
    own = statistics.variant_dice(benchmark, "control")
    assert own.sd_over_seeds.isna().all()
    assert tables.count_runs(own) == "3 (of 2 x 2)"


def test_a_patient_counts_in_the_subsets_that_he_has(tmp_path):
    def dice(case, subset, label, seed):
        if case == "p1" and "C" in subset:
            return None
        return 0.9 if case == "p1" else 0.3

    own = statistics.variant_dice(read_one(tmp_path, [record("control", dice=dice)]), "control")
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
            *make_runs("control", by_patient((0.5,) * 4), runs=((0, 0), (1, 0))),
            *make_runs("three_stages", uneven, runs=((0, 0), (0, 1))),
            *make_runs("stock", by_patient((0.5,) * 4), runs=((1, 1),)),
        ],
    )
    table = statistics.differences(benchmark, "three_stages", "control")
    assert benchmark.runs(["three_stages", "control"]) == [(0, 0)]
    assert table["n"].tolist() == [2] * 5 and table["mean"].tolist() == pytest.approx([0.1] * 5)
    assert tables.trio(benchmark) == [] and tables.subset_tables([benchmark]) == tables.NO_RESULTS
    nothing = statistics.differences(benchmark, "three_stages", "stock")
    assert nothing["n"].tolist() == [0] * 5 and nothing["mean"].isna().all()


@pytest.mark.parametrize(
    "gains, said",
    [
        ((0.06, 0.08, 0.05, 0.09), ("+7.0", "better")),
        ((-0.06, -0.08, -0.05, -0.09), ("-7.0", "worse")),
        ((-0.06, 0.08, -0.05, 0.04), ("+0.2", "no difference shown")),
    ],
)
def test_the_line_says_what_the_interval_shows(tmp_path, gains, said):
    base = np.array([0.50, 0.55, 0.65, 0.70])
    records = [*make_runs("control", by_patient(base)), *make_runs("three_stages", by_patient(base + gains))]
    text = tables.line([read_one(tmp_path, records)])
    assert text.startswith("Three stages minus control, mean over the incomplete subsets, Dice points: sarcoma P, 80")
    assert f"sarcoma P, 80 passes: {said[0]} (" in text and f"), 4 patients, 4 runs, {said[1]}. In parentheses" in text
    assert "stock" not in text


def test_the_line_compares_complete_input_with_stock(tmp_path):
    text = tables.line([read_one(tmp_path, full_grid())])
    assert "Three stages minus stock nnU-Net, complete input: sarcoma P, 80 passes: -8.0 (" in text


def test_the_tables_show_the_figures(repository):
    put(repository / report.ACCURACY, full_grid())
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    stock = "| stock nnU-Net | 4 (2 x 2) | 4 | 57.9 ± 0.0 | 75.0 ± 0.0 | 55.0 ± 0.0 | 55.0 ± 0.0 | 55.0 ± 0.0 | 7.0 |"
    assert f"| sarcoma P, 80 passes {stock}" in page
    assert "| sarcoma P, 80 passes | all three stages - control | 4 | +7.0 (" in page
    assert "| sarcoma P, 80 passes | all three stages - stock nnU-Net | 4 | +9.1 (" in page
    assert "| ○ | ● | ○ | 55.0 / 60.0 / 67.0 | +7.0 (" in page and "| ● | ● | ● | 75.0 / 60.0 / 67.0 | +7.0 (" in page
    row = "| `without_x` | without_x: in words | worse | 2 | 54.0 | 59.5 | -5.5 (-8.0 to -3.0) | -5.5"
    assert f"| sarcoma P, 80 passes {row}" in page
    assert "| 8 x 8 x 4 | 2 | 4, 8 | 0.03 | 80 to 80 | 10 | 1.00 |" in page
    line = (repository / "README.md").read_text().removeprefix("# Title\n\n<!-- benchmark:line -->\n")
    assert line.endswith("\n<!-- /benchmark -->\n\nafter\n") and line.startswith("Three stages minus control")
    assert line.splitlines()[0] in page
    assert page.count("\nbetween\n") == 6


def test_other_blocks_of_the_readme_are_left_alone(repository):
    readme = repository / "README.md"
    old = "<!-- benchmark:headline:D -->\nby hand\n<!-- /benchmark -->\n"
    readme.write_text(old)
    put(repository / report.ACCURACY, full_grid())
    report.write(repository)
    assert readme.read_text() == old and report.problems(repository) == []


def test_settings_of_a_dataset_share_a_table_of_subsets(tmp_path):
    longer = make_runs("control", by_patient((0.5,) * 4), budget=160)
    other = make_runs("control", by_patient((0.4,) * 4), dataset="Dataset001_Other")
    text = tables.subset_tables(statistics.read_results(put(tmp_path, [*full_grid(), *longer, *other])))
    first, second = text.split("\n\n")
    assert first.startswith("| A | B | C | Dataset001_Other P, 80 passes: control |")
    assert second.splitlines()[2].startswith("| ● | ○ | ○ | 55.0 / 60.0 / 67.0 | +7.0 (")
    assert second.splitlines()[2].endswith(" | 50.0 |") and len(second.splitlines()) == 2 + 7


def test_a_setting_without_ablations_leaves_their_table_to_the_others(repository):
    put(repository / report.ACCURACY, [*full_grid(), record("control", plans="Q")])
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    assert "| `without_x` |" in page
    assert page.count("No results yet.") == 1  # of the costs


@pytest.mark.parametrize("variant", ["stock", "control", "three_stages", "without_x"])
def test_a_single_variant_is_enough_for_a_page(repository, variant):
    put(repository / report.ACCURACY, make_runs(variant, by_patient((0.5, 0.6, 0.7, 0.8)), runs=RUNS[:1]))
    report.write(repository)
    assert report.problems(repository) == []
    page = (repository / "docs/benchmarks.md").read_text()
    assert "| sarcoma P, 80 passes | A, B, C | bfloat16 |" in page
    assert ("| 1 (1 x 1) | 2 | 55.0 |" in page) == (variant != "without_x")


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
    for name in ("README.md: line", "benchmarks.md: main", "by_number.png is not there"):
        assert any(line.endswith(name) for line in found), name
    assert not any(line.endswith(": cost") for line in found)

    report.write(repository)
    assert report.problems(repository) == []
    page = repository / "docs/benchmarks.md"
    page.write_text(page.read_text().replace("| 2 | 54.0 |", "| 2 | 54.1 |"))
    assert report.problems(repository) == [f"{page}: ablations"]
    command = [PYTHON, "-m", "scripts.benchmarks.report", "--repository", repository]
    failed = subprocess.run([*command, "--check"], capture_output=True, text=True, cwd=ROOT)
    assert failed.returncode == 1 and f"{page}: ablations" in failed.stderr
    assert subprocess.run(command, cwd=ROOT).returncode == 0
    assert subprocess.run([*command, "--check"], cwd=ROOT).returncode == 0


def test_ablations_are_compared_with_the_three_stages_of_their_setting(tmp_path):
    results = [
        *make_runs("three_stages", by_patient((0.50, 0.60, 0.70, 0.80))),
        *make_runs("no_contrast", by_patient((0.48, 0.60, 0.68, 0.80), **{"A+B+C": -0.02})),
        *make_runs("stock", by_patient((0.40, 0.50, 0.60, 0.70))),
    ]
    longer = make_runs("three_stages", by_patient((0.5,) * 4), budget=160)
    longer += make_runs("no_adapters", by_patient((0.6,) * 4), runs=RUNS[:1], budget=160)
    alone = make_runs("no_adapters", by_patient((0.6,) * 4), budget=320)
    benchmarks = statistics.read_results(put(tmp_path, [*results, *longer, *alone]))
    contrast, adapters = report.block("ablations", benchmarks, tmp_path).splitlines()[2:]
    words = "`no_contrast` | no contrastive loss | no difference shown | 4 | 64.0 | 65.0 |"
    assert contrast.startswith(f"| sarcoma P, 80 passes | {words} -1.0 (")
    assert "| -3.0 (" in contrast
    words = "`no_adapters` | no adapters: the decoder alone learns | better | 1 | 60.0 | 50.0 |"
    assert adapters.startswith(f"| sarcoma P, 160 passes | {words} +10.0")
    assert report.block("ablations", [], tmp_path) == tables.NO_RESULTS


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
    assert list((repository / report.ACCURACY).glob("*.json")) == [copy]
    report.add(put(tmp_path / "other", [record("control", dataset="Dataset001_Other")]), repository)
    report.write(repository)
    assert "| Dataset001_Other P, 80 passes | control |" in (repository / "docs/benchmarks.md").read_text()


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


def test_each_plan_and_budget_has_rows_of_its_own(repository):
    others = {"budget": 1000, "dice": by_patient((0.7,) * 4)}, {"plans": "Q", "configuration": "2d"}
    put(repository / report.ACCURACY, [record("control"), *(record("control", **other) for other in others)])
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    for row in ("P, 80 passes | control", "P, 1000 passes | control", "Q, 2d, 80 passes | control"):
        assert page.count(f"| sarcoma {row} | 1 (1 x 1) | 2 |") == 1
    assert "| sarcoma P, 1000 passes | control | 1 (1 x 1) | 2 | 70.0 |" in page


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- benchmark:mian:D -->\n<!-- /benchmark -->\n", "There is no block 'benchmark:mian:D'"),
        ("<!-- benchmark:cost -->\n", "needs a '<!-- /benchmark -->'"),
        ("<!-- /benchmark -->\n", "and the reverse"),
        ("nothing\n", "results are shown nowhere: .*Put this line"),
    ],
)
def test_wrong_markers_are_named(repository, text, message):
    put(repository / report.ACCURACY, [record("control")])
    (repository / "docs/benchmarks.md").write_text(text)
    with pytest.raises(UserError, match=message):
        report.problems(repository)


def cost_file(name, *tables_of_it):
    return {
        "hardware": name,
        "versions": {"torch": "2.9", "python": "3.11"},
        "command": "python -m scripts.benchmarks.cost",
        "tables": [dict(zip(("title", "columns", "rows", "note"), one, strict=True)) for one in tables_of_it],
    }


def test_cost_tables_are_shown(repository):
    (repository / report.COST).mkdir(parents=True)
    measured = cost_file("2 cores", ("counts", ["what", "size"], [["a|b", 1.5]], "n = 3"))
    (repository / report.COST / "cpu.json").write_text(json.dumps(measured))
    report.write(repository)
    page = (repository / "docs/benchmarks.md").read_text()
    assert "| cpu | 2 cores | torch 2.9, python 3.11 | python -m scripts.benchmarks.cost |\n" in page
    rows = "| measurement | what | size |\n| :-- | :-- | --: |\n| cpu | a\\|b | 1.5 |\n"
    assert f"**counts.** n = 3\n\n{rows}" in page


def test_ratios_of_several_measurements_stand_side_by_side_with_the_missed_targets(tmp_path):
    steps = "training step", ["trainer", "seconds", "/ stock", "target", "kept"]
    memory = "memory", ["trainer", "peak, MB", "/ stock", "reserved, MB", "target, MB", "kept"]
    files = {
        "cpu": cost_file(
            "2 cores",
            (*steps, [["stage 1", "1", "0.91", "1.10", "yes"], ["stage 2", "2", "2.30", "2.10", "no"]], "n = 3"),
            (*memory, [["stage 1", "70", "1.20", "-", "60", "no"]], ""),
        ),
        "cuda": cost_file(
            "a GPU",
            (*steps, [["stage 1", "1", "1.12", "1.10", "no"]], "n = 3"),
            (*memory, [["stage 1", "50", "1.10", "65", "60", "no"]], ""),
        ),
    }
    for name, measured in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(measured))
    text = tables.cost_tables(tmp_path)
    assert "**Over stock nnU-Net.** n = 3\n\n| measured | of | cpu | cuda |\n" in text
    assert "| training step | trainer: stage 1 | 0.91 | 1.12 (missed: target 1.10) |\n" in text
    assert "| training step | trainer: stage 2 | 2.30 (missed: target 2.10) | - |\n" in text
    cells = "1.20 (missed: 70 MB, target 60) | 1.10 (missed: 65 MB, target 60)"
    assert f"| memory | trainer: stage 1 | {cells} |\n" in text


def test_plots_show_the_figures(tmp_path):
    benchmark = read_one(tmp_path, full_grid())
    ((name, (_, draw)),) = report.list_plots([benchmark]).items()
    assert name == f"{DATASET}_P_passes80_by_number.png"
    (axes,) = draw().axes
    stock, control, three_stages = axes.lines
    assert stock.get_ydata() == pytest.approx([55, 55, 75]) and control.get_ydata() == pytest.approx([60] * 3)
    assert three_stages.get_label() == "all three stages" and three_stages.get_ydata() == pytest.approx([67] * 3)
    (_, low), (_, high) = axes.collections[0].get_segments()[0]
    assert 40 < low < 55 < high < 70
