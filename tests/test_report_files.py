from __future__ import annotations

import dataclasses
import re

import pytest
from evaluations import made_up
from report_phantom import phantom_evaluation

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.reports import evaluation as report
from nnunetv2_unimrseg.reports import evaluation_page
from nnunetv2_unimrseg.reports.evaluation import write_report
from nnunetv2_unimrseg.reports.html import NOTHING, breakable, data_uri, number, percent, render, signed

HOSTILE = '<script>document.title="hurt"</script>'


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return phantom_evaluation(tmp_path_factory.mktemp("phantom"), 2, shape=(24, 28, 22))


def test_a_report_has_all_its_files_and_one_page_that_refers_to_none_of_them(phantom, tmp_path):
    page = write_report(phantom, tmp_path / "report")
    assert {str(path.relative_to(page.parent)) for path in page.parent.rglob("*.*")} == {
        "report.html", "table.md", "table.tex", "plots/heat_map.png", "plots/boxes_by_number.png",
        "plots/cost_of_losing.png", "montages/phantom_000.png", "montages/phantom_001.png",
    }  # fmt: skip
    text = page.read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.stat().st_size < 15_000_000


def test_cases_whose_files_are_gone_are_named_and_the_others_drawn(phantom, tmp_path):
    first, second = phantom.settings["cases"]
    settings = {**phantom.settings, "cases": [{**first, "label": str(tmp_path / "moved.nii.gz")}, second]}
    page = write_report(dataclasses.replace(phantom, settings=settings), tmp_path)
    assert [path.name for path in (tmp_path / "montages").iterdir()] == ["phantom_001.png"]
    text = page.read_text(encoding="utf-8")
    assert "1 of 2 cases have no pictures" in text and "moved.nii.gz" in text


def test_an_evaluation_in_memory_is_reported_without_pictures(tmp_path):
    page = write_report(made_up(["CT", "PET"], ["tumour"], num_cases=2), tmp_path)
    assert "2 of 2 cases have no pictures" in page.read_text(encoding="utf-8")
    assert not (tmp_path / "montages").exists()


@pytest.mark.parametrize(("num_cases", "few"), [(4, True), (5, False)])
def test_few_cases_are_said_to_be_few(tmp_path, num_cases, few):
    page = write_report(made_up(["CT", "PET"], ["tumour"], num_cases=num_cases), tmp_path)
    assert (f"averages over {num_cases} say little" in page.read_text(encoding="utf-8")) == few


def test_failures_are_listed(tmp_path):
    evaluation = made_up(["CT", "PET"], ["tumour"])
    failure = {"case": "case_77", "subset": "CT", "reason": "the file is <truncated>"}
    page = write_report(
        dataclasses.replace(evaluation, settings={**evaluation.settings, "failures": [failure]}), tmp_path
    )
    text = page.read_text(encoding="utf-8")
    assert (
        "case_77" in text
        and "the file is &lt;truncated&gt;" in text
        and "1 prediction failed and does not count" in text
    )


def test_an_old_report_stays_whole_when_the_new_one_cannot_be_made(tmp_path, monkeypatch):
    page = write_report(made_up(["CT", "PET"], ["tumour"]), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def fail(*_):
        raise RuntimeError("no page")

    monkeypatch.setattr(report, "evaluation_page", fail)
    with pytest.raises(RuntimeError, match="no page"):
        write_report(made_up(["CT", "PET"], ["other"]), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert page in before


def test_nothing_scored_and_a_folder_that_cannot_be_made_are_errors(tmp_path):
    evaluation = made_up(["CT", "PET"], ["tumour"])
    with pytest.raises(UserError, match="no case was scored"):
        write_report(dataclasses.replace(evaluation, scores=evaluation.scores.head(0)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*report: Not a directory"):
        write_report(evaluation, tmp_path / "file" / "report")


@pytest.mark.parametrize("kept", [["CT"], ["CT+PET"], ["CT", "PET"], ["CT", "CT+PET"]])
def test_any_subsets_can_be_reported(tmp_path, kept):
    evaluation = made_up(["CT", "PET"], ["tumour", "node"])
    entries = [entry for entry in evaluation.settings["subsets"] if entry["name"] in kept]
    scores = evaluation.scores[evaluation.scores["subset"].isin(kept)]
    few = dataclasses.replace(evaluation, settings={**evaluation.settings, "subsets": entries}, scores=scores)
    text = write_report(few, tmp_path).read_text(encoding="utf-8")
    assert ("with every modality" in text) == ("CT+PET" in kept)
    assert ("No two of the evaluated subsets" in text) == (kept != ["CT", "CT+PET"])


def test_undefined_dice_is_shown_as_nothing(tmp_path):
    evaluation = made_up(["CT", "PET"], ["tumour"])
    evaluation.scores.loc[evaluation.scores["subset"] == "PET", ["dice", "hd95_mm", "asd_mm"]] = float("nan")
    text = write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    assert NOTHING in text and ">nan" not in text
    assert "worst subset: only CT" in text


def test_names_cannot_break_out_of_the_page(tmp_path):
    evaluation = made_up([f"a{HOSTILE}", 'b" onclick="x'], ["l'&<i>", HOSTILE, "plain"], name=HOSTILE)
    text = write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    assert HOSTILE not in text and "<i>" not in text.split("<main>")[1].replace('<i class="on"></i>', "").replace(
        "<i></i>", ""
    )
    assert 'b" onclick' not in text


def test_many_rows_are_cut_to_the_worst_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_page, "MOST_CASE_ROWS", 4)
    monkeypatch.setattr(evaluation_page, "MOST_PAIR_ROWS", 2)
    evaluation = made_up(["A", "B", "C"], ["tumour"], num_cases=3)
    text = write_report(evaluation, tmp_path).read_text(encoding="utf-8")
    assert "the worst 4 rows; subsets.csv has 17 more" in text and "7 better ones are only in summary.json" in text
    worst = evaluation.scores.nsmallest(4, "dice")
    rows = re.findall(r'<tr data-subset="([^"]*)" data-case="([^"]*)"', text)
    assert sorted(rows) == sorted(zip(worst["subset"], worst["case"], strict=True))


def test_filters_format_figures():
    assert percent(0.7416) == "74.2" and percent(None) == percent(float("nan")) == NOTHING
    assert number(-0.04) == "0.0" and number(-1.25, 2) == "−1.25"
    assert signed(3) == "+3.0" and signed(-3) == "−3.0" and signed(0.0) == "0.0" and signed(0.001) == "0.0"
    assert breakable("a_<b>") == "a_<wbr>&lt;b&gt;"


def test_pictures_become_data_addresses(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG1")
    assert data_uri(tmp_path / "a.png") == data_uri(b"\x89PNG1") == "data:image/png;base64,iVBORzE="
    assert data_uri(b"\xff\xd8\xff").startswith("data:image/jpeg;base64,")


def test_a_page_whose_names_are_not_given_is_an_error():
    import jinja2

    with pytest.raises(jinja2.UndefinedError):
        render("evaluation.html.j2")
