"""The page of a comparison in headless Chromium."""

from __future__ import annotations

import pytest
from comparable import another, baseline
from report_browser import PHONE, browser, emulate, requested

from nnunetv2_unimrseg.comparison.compare import compare
from nnunetv2_unimrseg.comparison.differences import OVER_INCOMPLETE, case_scores
from nnunetv2_unimrseg.evaluation.summary import MEAN_LABEL
from nnunetv2_unimrseg.reports.comparison import write_comparison

LABELS = ("whole & <b>tumour</b>", "edema_50%")
NAMES = ("UniMRSegModalityDropoutTrainer, fold 0", "<i>up</i> & away", "down")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    first = baseline(modalities=("FLAIR", "T1", "T2"), labels=LABELS, num_cases=9)
    models = [first, another(first, gain=0.2), another(first, gain=-0.01, seed=2)]
    comparison = compare(models, NAMES, resamples=200)
    write_comparison(comparison, folder)
    return comparison, folder / "report.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(driver, made):
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(driver)
    driver.get_log("browser")
    requested(driver)
    driver.get(made[1].as_uri())
    return driver


def rows(page, table):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].filter((row) => row.offsetParent)"
        ".map((row) => [...row.cells].map((cell) => cell.textContent.trim()))",
        table,
    )


def choose(page, key, value):
    page.execute_script(
        "const chosen = document.querySelector(`select[data-key=${arguments[0]}]`); chosen.value = arguments[1];"
        "chosen.dispatchEvent(new Event('change'))",
        key,
        value,
    )


def shown(value, digits=1):
    return f"{value:.{digits}f}".replace("-", "−")


def test_it_opens_from_disk_without_a_complaint_and_loads_nothing_else(page, made):
    assert page.execute_script("return document.images.length") == 2
    assert page.execute_script("return [...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert [url for url in requested(page) if not url.startswith("data:")] == [made[1].as_uri()]
    assert page.get_log("browser") == []


def test_names_are_shown_as_they_are(page):
    text = page.execute_script("return document.body.textContent")
    assert all(name in text for name in (*NAMES, LABELS[0]))
    assert (
        page.execute_script("return document.querySelectorAll('main i:not(.circles i), main b:not(.card b)').length")
        == 0
    )


def test_the_dice_table_has_the_figures_of_every_model(page, made):
    comparison, _ = made
    tables = [comparison.rows(model, "dice", MEAN_LABEL) for model in NAMES[1:]]
    found = rows(page, "#dice-table")
    assert len(found) == 7
    for cells, subset in zip(found, comparison.matched.subsets, strict=True):
        assert subset in cells[0]
        assert cells[1] == shown(100 * tables[0].loc[subset, "mean_a"])
        for number, table in enumerate(tables):
            line = table.loc[subset]
            model, difference, p = cells[2 + 3 * number : 5 + 3 * number]
            assert model == shown(100 * line["mean_b"])
            assert difference.split(" [")[0].lstrip("+") == shown(100 * line["difference"])
            assert p.endswith("*") == (line["p_holm"] < 0.05)
    assert any(cells[4].endswith("*") for cells in found) and not all(cells[7].endswith("*") for cells in found)
    feet = "return [...document.querySelector('#dice-table').tFoot.rows].map((row) => row.cells[0].textContent)"
    assert page.execute_script(feet) == ["mean of the 6 incomplete", "mean of all 7"]


def test_metric_label_and_model_are_chosen(page, made):
    comparison, _ = made
    found = rows(page, "#difference-table")
    assert [row[2] for row in found] == [
        shown(100 * value) for value in comparison.rows(NAMES[1], "dice", MEAN_LABEL)["mean_a"]
    ]
    for key, value in (("metric", "hd95_mm"), ("label", LABELS[0]), ("model", NAMES[2])):
        choose(page, key, value)
    found = rows(page, "#difference-table")
    expected = comparison.rows(NAMES[2], "hd95_mm", LABELS[0])
    assert [row[3] for row in found] == [shown(value, 2) for value in expected["mean_b"]]
    counts = [f"{line.wins} / {line.ties} / {line.losses}" for line in expected.itertuples()]
    assert [row[7] for row in found] == counts


def test_cases_sort_by_their_difference(page, made):
    comparison, _ = made
    scores = case_scores(comparison.matched, "dice").xs((MEAN_LABEL, OVER_INCOMPLETE), level=("label", "subset"))
    head = page.find_elements("css selector", "#case-table thead th")[3]
    page.execute_script("arguments[0].querySelector('button').click()", head)
    expected = (scores[NAMES[1]] - scores[NAMES[0]]).sort_values()
    assert [row[0] for row in rows(page, "#case-table")] == list(expected.index)


def test_nothing_but_the_tables_is_wider_than_a_phone(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    for table in ("#dice-table", "#difference-table"):
        first = "return document.querySelector(arguments[0] + ' tbody th').getBoundingClientRect().width"
        assert page.execute_script(first, table) < PHONE["width"] / 2


def test_nothing_is_cut_off_on_paper(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**PHONE, "width": 760, "mobile": False})
    emulate(page, medium="print")
    widths = "return [...document.querySelectorAll('main img')].map((image) => image.getBoundingClientRect().right)"
    assert max(page.execute_script(widths)) <= 760
