"""Comparisons against independently worked out figures, and everything that `unimrseg compare` writes."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from comparable import another, baseline, changed, only_subsets, written
from scipy import stats

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.comparison.compare import compare
from nnunetv2_unimrseg.comparison.differences import COLUMNS, OVER_ALL, OVER_INCOMPLETE
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.files import read_evaluation
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL, by_subset
from nnunetv2_unimrseg.reports.comparison import write_comparison

FAST = {"resamples": 200}


def compare_and_write(evaluations, folder, *names, **keywords):
    """Compare, and write what comes of it."""
    comparison = compare(evaluations, *names, **keywords)
    write_comparison(comparison, folder)
    return comparison


FILES = (
    "differences.csv", "plots/dice_by_subset.png", "plots/differences.png", "report.html", "subsets.csv",
    "summary.json", "table.md", "table.tex",
)  # fmt: skip
AWKWARD = ("whole & <tumour>", "edema_50%")


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="module")
def three():
    first = baseline(modalities=("A", "B"), labels=("x", "y"), num_cases=8)
    return [first, another(first, "second", 0.1, seed=1), another(first, "third", -0.02, seed=2)]


def row(table: pd.DataFrame, **values: str) -> pd.Series:
    for column, value in values.items():
        table = table[table[column] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_there_is_a_row_for_every_pair_metric_label_and_subset(three):
    table = compare(three, **FAST).differences
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 2 * 3 * 3 * (3 + 2)
    assert list(table["subset"][:5]) == ["A", "B", "A+B", OVER_INCOMPLETE, OVER_ALL]
    assert set(table["model_a"]) == {"UniMRSegStage3Trainer"}
    assert list(table["model_b"].unique()) == ["second", "third"]
    assert list(table["label"].unique()) == ["x", "y", MEAN_LABEL]


def test_means_agree_with_the_evaluations_and_differences_with_the_means(three):
    table = compare(three, **FAST).differences
    figures = [by_subset(evaluation).set_index(["subset", "label"]) for evaluation in three]
    for metric in ("dice", "hd95_mm", "asd_mm"):
        for subset in ("A", "A+B"):
            for label in ("x", MEAN_LABEL):
                found = row(table, model_b="third", metric=metric, label=label, subset=subset)
                assert found["mean_a"] == pytest.approx(figures[0].loc[(subset, label), metric])
                assert found["mean_b"] == pytest.approx(figures[2].loc[(subset, label), metric])
                assert found["difference"] == pytest.approx(found["mean_b"] - found["mean_a"])
                assert found["n"] == 8


def test_averages_are_made_within_each_case_before_cases_are_tested(three):
    table = compare(three, **FAST).differences
    cases = sorted(three[0].scores["case"].unique())
    for subset, members in ((OVER_ALL, ("A", "B", "A+B")), (OVER_INCOMPLETE, ("A", "B"))):
        differences = []
        for case in cases:
            means = [
                np.mean([
                    line.dice for line in evaluation.scores.itertuples() if line.case == case and line.subset in members
                ])
                for evaluation in three[:2]
            ]  # fmt: skip
            differences.append(means[1] - means[0])
        found = row(table, model_b="second", metric="dice", label=MEAN_LABEL, subset=subset)
        assert found["n"] == 8
        assert found["difference"] == pytest.approx(np.mean(differences))
        assert found["p_wilcoxon"] == pytest.approx(stats.wilcoxon(differences).pvalue)
        assert found["wins"] == sum(difference > 0 for difference in differences)
        assert found["ci_low"] < found["difference"] < found["ci_high"]


def test_holm_corrects_the_subsets_of_one_label_metric_and_pair_and_the_averages_apart(three):
    table = compare(three, **FAST).differences
    for _, family in table.groupby(["model_b", "metric", "label"]):
        for members in (["A", "B", "A+B"], [OVER_INCOMPLETE, OVER_ALL]):
            p = family.set_index("subset").loc[members, "p_wilcoxon"].sort_values()
            expected, largest = {}, 0.0
            for rank, (subset, value) in enumerate(p.items()):
                largest = max(largest, min(1.0, value * (len(p) - rank)))
                expected[subset] = largest
            found = family.set_index("subset").loc[members, "p_holm"]
            assert found.to_dict() == pytest.approx(expected)


def test_lower_distances_are_wins():
    first = baseline(modalities=("A", "B"), labels=("x",), num_cases=4)
    better = replace(first, scores=first.scores.assign(hd95_mm=first.scores["hd95_mm"] - 1))
    table = compare([first, changed(better, name="b")], **FAST).differences
    found = row(table, metric="hd95_mm", subset="A")
    assert found["difference"] == pytest.approx(-1)
    assert (found["wins"], found["ties"], found["losses"]) == (4, 0, 0)
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((-1, -1))


def test_nothing_is_found_where_models_differ_by_noise_only():
    first = baseline(modalities=("A", "B", "C"), labels=("x",), num_cases=20)
    significant = 0
    for seed in range(10):
        table = compare([first, another(first, noise=0.05, seed=seed)], **FAST).differences
        significant += (table["p_holm"][table["metric"] == "dice"][:7] < 0.05).any()
    assert significant <= 2


def test_a_model_compared_with_itself_has_no_differences(three):
    table = compare([three[0], three[0]], **FAST).differences
    assert (table[["difference", "ci_low", "ci_high"]] == 0).all(axis=None)
    assert (table[["p_wilcoxon", "p_holm"]] == 1).all(axis=None)
    assert (table["ties"] == table["n"]).all()


def test_a_score_that_one_model_lacks_counts_for_none():
    first = baseline(modalities=("A", "B"), labels=("x", "y"), num_cases=6)
    first = changed(first, conventions={"empty": "nan", "failure_dice": 0.1})
    second, third = another(first, "second", 0.1), another(first, "third", 0.2)
    gap = (third.scores["case"] == "case_02") & (third.scores["subset"] == "B") & (third.scores["label"] == "x")
    third = replace(third, scores=third.scores.assign(dice=third.scores["dice"].mask(gap)))
    comparison = compare([first, second, third], **FAST)
    table = comparison.differences
    kept = first.scores[(first.scores["subset"] == "B") & (first.scores["label"] == "x")]
    kept = kept[kept["case"] != "case_02"]
    for model in ("second", "third"):
        found = row(table, model_b=model, metric="dice", label="x", subset="B")
        assert found["n"] == 5
        assert found["mean_a"] == pytest.approx(kept["dice"].mean())
    assert row(table, model_b="second", metric="dice", label=MEAN_LABEL, subset="B")["n"] == 6
    assert row(table, model_b="second", metric="hd95_mm", label="x", subset="B")["n"] == 6
    assert any("1 of 36 dice scores are undefined" in notice for notice in comparison.notices)


def test_a_metric_that_is_undefined_everywhere_is_nan_and_all_outputs_are_made(tmp_path):
    first = baseline(modalities=("A", "B"), labels=("x",), num_cases=3)
    undefined = [changed(replace(first, scores=first.scores.assign(dice=np.nan, hd95_mm=np.nan)), name=n) for n in "pq"]
    table = compare_and_write(undefined, tmp_path / "out", **FAST).differences
    dice = table[table["metric"] == "dice"]
    assert len(dice) == 5
    assert (dice["n"] == 0).all()
    assert dice[["mean_a", "difference", "ci_low", "p_wilcoxon", "p_holm"]].isna().all(axis=None)
    assert files_of(tmp_path / "out") == FILES


@pytest.mark.parametrize(
    ("cases", "notice"),
    [(1, "only one case"), (5, "0.062, above 0.05"), (8, "0.0078, is 0.055 after Holm's correction for 7 subsets")],
)
def test_too_few_cases_are_told(cases, notice, tmp_path):
    first = baseline(modalities=("A", "B", "C"), labels=("x",), num_cases=cases)
    comparison = compare_and_write([first, another(first)], tmp_path / "out", **FAST)
    assert any(notice in text for text in comparison.notices)
    assert notice in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")
    enough = baseline(modalities=("A", "B", "C"), labels=("x",), num_cases=12)
    assert compare([enough, another(enough)], **FAST).notices == ()


def test_where_only_incomplete_subsets_were_evaluated_there_is_one_average(three):
    singles = [only_subsets(evaluation, "A", "B") for evaluation in three[:2]]
    table = compare(singles, **FAST).differences
    assert list(table["subset"][:3]) == ["A", "B", OVER_ALL]


def files_of(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluations")
    first = baseline(modalities=("A", "B_1"), labels=AWKWARD, num_cases=7)
    models = [first, another(first, "<i>mod & el$", 0.2), another(first, "third|model", -0.02, seed=2)]
    return [written(model, root / name) for model, name in zip(models, ("one", "two", "three"), strict=True)]


def test_the_command_writes_everything_and_prints_the_table(folders, tmp_path, capsys):
    out = tmp_path / "new" / "comparison"
    assert main(["compare", *map(str, folders), "-o", str(out), "--resamples", "300", "--seed", "7"]) == 0
    printed = capsys.readouterr()
    assert files_of(out) == FILES
    assert not list(out.parent.glob(".comparison*"))
    assert "mean of the 2 incomplete" in printed.out
    assert str(out / "report.html") in printed.out
    assert "7 cases" in printed.err

    table = pd.read_csv(out / "differences.csv")
    in_memory = compare(folders, resamples=300, seed=7)
    np.testing.assert_allclose(table["ci_low"], in_memory.differences["ci_low"])
    scores = pd.read_csv(out / "subsets.csv")
    assert list(scores["model"].unique()) == list(in_memory.names)
    assert len(scores) == 3 * 7 * 3 * 2

    summary = json.loads((out / "summary.json").read_text())
    assert [model["folder"] for model in summary["models"]] == [str(folder.resolve()) for folder in folders]
    assert (
        summary["models"][0]["model"]["weights_sha256"]
        == read_evaluation(folders[0]).settings["model"]["weights_sha256"]
    )
    assert summary["method"]["resamples"] == 300 and summary["method"]["seed"] == 7
    assert summary["conventions"]["empty"] == "brats"
    assert len(summary["figures"]["differences"]) == len(table)
    with pytest.raises(UserError, match="no evaluation of format"):
        read_evaluation(out)


def test_tables_show_what_the_differences_say(folders, tmp_path):
    comparison = compare_and_write(folders, tmp_path / "out", ["base", "up", "down"], **FAST)
    found = row(comparison.differences, model_b="up", metric="dice", label=MEAN_LABEL, subset="A")
    interval = f"{100 * found['difference']:+.1f} [{100 * found['ci_low']:+.1f}, {100 * found['ci_high']:+.1f}]"
    p = f"{found['p_holm']:.2g}" + ("*" if found["p_holm"] < 0.05 else "")
    assert found["p_holm"] < 0.05
    markdown = (tmp_path / "out" / "table.md").read_text()
    first_table = markdown.split("\n\n")[1].splitlines()
    cells = [cell.strip() for cell in first_table[2].strip("|").split("|")]
    assert cells[:6] == ["●", "○", f"{100 * found['mean_a']:.1f}", f"{100 * found['mean_b']:.1f}", interval, p]
    assert first_table[-1].startswith("| mean of all 3 |")
    assert markdown.startswith("mean over the labels: Dice (%), mean over 7 cases, and difference to base")
    latex = (tmp_path / "out" / "table.tex").read_text()
    assert latex.count(r"\begin{table}") == 3
    assert r"whole \& \textless{}tumour\textgreater{}" in latex
    assert rf"$\bullet$ & $\circ$ & {cells[2]} & {cells[3]} & {interval} & {p} &" in latex


def test_plots_are_pictures_of_more_than_white(folders, tmp_path):
    compare_and_write(folders, tmp_path / "out", **FAST)
    for name in ("dice_by_subset", "differences"):
        picture = matplotlib.image.imread(tmp_path / "out" / "plots" / f"{name}.png")
        assert picture.shape[0] > 300 and picture.shape[1] > 600
        assert 0.005 < np.mean(picture[..., :3].min(axis=2) < 0.9) < 0.5


def test_the_output_folder_is_not_taken_from_anything_else(folders, tmp_path, capsys):
    arguments = ["compare", str(folders[0]), str(folders[1]), "--resamples", "100", "-o"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert main([*arguments, str(other)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert files_of(other) == ("notes.txt",)
    assert main([*arguments, str(other), "--overwrite"]) == 0
    assert set(files_of(other)) == {*FILES, "notes.txt"}
    assert main([*arguments, str(other), "--seed", "1"]) == 0
    assert json.loads((other / "summary.json").read_text())["method"]["seed"] == 1
    capsys.readouterr()

    before = (folders[2] / "summary.json").read_bytes()
    assert main([*arguments, str(folders[2]), "--overwrite"]) == 2
    assert "holds an evaluation" in capsys.readouterr().err
    assert (folders[2] / "summary.json").read_bytes() == before

    assert main([*arguments, str(other / "notes.txt")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_wrong_input_is_one_message_and_nothing_written(folders, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    absent = [str(tmp_path / "absent"), str(tmp_path / "empty")]
    assert main(["compare", str(folders[0]), *absent, "-o", str(out)]) == 2
    message = capsys.readouterr().err
    assert all(f"{folder} holds no finished evaluation" in message for folder in absent)
    wrong = ["--confidence", "95", "--resamples", "5", "--seed", "-1"]
    assert main(["compare", str(folders[0]), str(folders[1]), "-o", str(out), *wrong]) == 2
    message = capsys.readouterr().err
    assert all(text in message for text in ("between 0 and 1", "At least 100", "0 or larger"))
    assert main(["compare", str(folders[0]), "-o", str(out)]) == 2
    assert "at least two evaluations" in capsys.readouterr().err
    assert not out.exists()


def test_a_comparison_that_cannot_be_written_leaves_the_one_before(folders, tmp_path, monkeypatch):
    out = tmp_path / "out"
    compare_and_write(folders[:2], out, **FAST)
    before = {name: (out / name).read_bytes() for name in FILES}
    monkeypatch.setattr("nnunetv2_unimrseg.reports.comparison_plots.differences", _no_space)
    with pytest.raises(UserError, match="No space left"):
        compare_and_write(folders, out, **FAST)
    assert {name: (out / name).read_bytes() for name in FILES} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_many_subsets_and_labels_are_drawn_and_tabulated(tmp_path):
    labels = ("a", "b", "c", "d", "e")
    first = baseline(modalities=tuple("ABCDEF"), labels=labels, num_cases=2)
    comparison = compare_and_write([first, another(first)], tmp_path / "out", resamples=100)
    assert len(comparison.matched.subsets) == 63
    assert files_of(tmp_path / "out") == FILES
    picture = matplotlib.image.imread(tmp_path / "out" / "plots" / "differences.png")
    assert picture.shape[1] < picture.shape[0] < 4000
