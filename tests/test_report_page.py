"""The page of an evaluation in headless Chromium."""

from __future__ import annotations

import base64

import pytest
from report_browser import PHONE, browser, emulate, requested
from report_phantom import phantom_evaluation

from nnunetv2_unimrseg.evaluation.summary import adding_modalities, by_subset
from nnunetv2_unimrseg.reports.evaluation import write_report
from nnunetv2_unimrseg.reports.tables import describe_subset

MEAN_COLUMN = 2 + 4 + 3


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return phantom_evaluation(tmp_path_factory.mktemp("phantom"), 3, shape=(24, 28, 22))


@pytest.fixture(scope="module")
def address(evaluation, tmp_path_factory):
    return write_report(evaluation, tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(driver, address):
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    emulate(driver)
    driver.get_log("browser")
    requested(driver)
    driver.get(address)
    return driver


def find(page, selector):
    return page.find_element("css selector", selector)


def choose(page, selector, value):
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event(arguments[2]))"
    element = find(page, selector)
    page.execute_script(script, element, value, "input" if element.tag_name == "input" else "change")


def visible_rows(page, table):
    return page.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].filter((row) => row.offsetParent)"
        ".map((row) => [...row.cells].map((cell) => cell.textContent.trim()))",
        table,
    )


def large_pictures(page):
    return page.execute_script("return [...document.querySelectorAll('#viewer-large img')].map((image) => image.src)")


def background(page):
    return page.execute_script("return getComputedStyle(document.body).backgroundColor")


def test_it_opens_from_disk_without_a_complaint_and_loads_nothing_else(page, address):
    for option in range(3):
        choose(page, "#viewer-case", str(option))
    assert page.execute_script("return document.images.length") > 5
    assert page.execute_script("return [...document.images].every((i) => i.complete && i.naturalWidth > 0)")
    assert [url for url in requested(page) if not url.startswith("data:")] == [address]
    assert page.get_log("browser") == []


def test_the_table_has_the_summarys_figures_and_sorts_both_ways(page, evaluation):
    figures = by_subset(evaluation)
    dice = figures[figures["label"] == "mean"].set_index("subset")["dice"]
    words = {describe_subset(evaluation.modalities, subset): name for name, subset in evaluation.subsets.items()}
    rows = visible_rows(page, "#subset-table")
    assert {words[row[0]]: row[MEAN_COLUMN] for row in rows} == {name: f"{100 * v:.1f}" for name, v in dice.items()}
    averages = page.execute_script("return document.querySelector('#subset-table').tFoot.textContent")
    head = page.find_elements("css selector", "#subset-table thead th")[MEAN_COLUMN]
    for ascending in (True, False):
        page.execute_script("arguments[0].querySelector('button').click()", head)
        shown = [words[row[0]] for row in visible_rows(page, "#subset-table")]
        assert shown == list(dice.sort_values(ascending=ascending).index)
        assert head.get_attribute("aria-sort") == ("ascending" if ascending else "descending")
    assert page.execute_script("return document.querySelector('#subset-table').tFoot.textContent") == averages


def test_a_column_of_circles_sorts_what_is_available(page):
    head = page.find_elements("css selector", "#subset-table thead th")[2]
    page.execute_script("arguments[0].querySelector('button').click()", head)
    shown = page.execute_script(
        "return [...document.querySelectorAll('#subset-table tbody tr')]"
        ".map((row) => row.cells[2].querySelector('.circles').getAttribute('aria-label'))"
    )
    assert shown == ["FLAIR missing"] * 7 + ["FLAIR available"] * 8


def test_only_pairs_that_were_lowered_can_be_shown(page, evaluation):
    changes = adding_modalities(evaluation)
    changes = changes[changes["label"] == "mean"]
    assert len(visible_rows(page, "#pair-table")) == len(changes) == 28
    page.execute_script("document.querySelector('[data-key=lowered]').click()")
    rows = visible_rows(page, "#pair-table")
    assert len(rows) == (changes["change"] < 0).sum() > 0
    assert all(row[6].startswith("−") for row in rows)


def test_cases_are_shown_for_the_chosen_subset(page, evaluation):
    of_complete = evaluation.scores[evaluation.scores["subset"] == evaluation.complete]
    expected = of_complete.groupby("case")["dice"].mean()
    assert [(row[0], row[6]) for row in visible_rows(page, "#case-table")] == [
        (case, f"{100 * value:.1f}") for case, value in expected.items()
    ]
    choose(page, "[data-rows-of=case-table][data-key=subset]", "")
    assert len(visible_rows(page, "#case-table")) == 3 * 15


def test_the_slider_changes_the_slice(page):
    before, place = large_pictures(page), find(page, "#viewer-place").text
    choose(page, "#viewer-slice", "0")
    assert not set(before) & set(large_pictures(page))
    assert find(page, "#viewer-place").text != place


def test_the_viewer_obeys_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    def state():
        script = (
            "return [document.getElementById('viewer-slice').value, document.getElementById('viewer-subset').value]"
        )
        position, subset = page.execute_script(script)
        return int(position), subset

    viewer = find(page, "#viewer")
    position, subset = state()
    assert subset == "FLAIR+T1+T1ce+T2"
    viewer.send_keys(Keys.ARROW_DOWN)
    assert state() == (position - 1, subset)
    viewer.send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert state() == (position, "FLAIR+T1+T1ce")
    find(page, "#viewer-slice").send_keys(Keys.ARROW_LEFT)
    assert state() == (position - 1, "FLAIR+T1+T1ce"), "a slider that has the focus moves as sliders do"


def test_predictions_lie_on_modalities_that_they_were_made_from(page):
    choose(page, "#viewer-subset", "T1ce")
    options = page.execute_script("return [...document.getElementById('viewer-below').options].map((o) => o.value)")
    assert options == ["T1ce"]
    captions = page.execute_script(
        "return [...document.querySelectorAll('#viewer figcaption')].map((c) => c.textContent)"
    )
    assert captions == [
        "reference, on T1ce", "prediction from only T1ce, on T1ce", "FLAIR (left out)", "T1 (left out)", "T1ce",
        "T2 (left out)",
    ]  # fmt: skip


def test_on_a_phone_only_the_tables_scroll_sideways(page):
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    page.execute_script("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.execute_script("return document.documentElement.scrollWidth") <= PHONE["width"]
    box = "document.querySelector('#subset-table').closest('.box')"
    assert page.execute_script(f"return {box}.scrollWidth > {box}.clientWidth")
    assert page.execute_script(f"{box}.scrollLeft = 100; return {box}.scrollLeft") == 100


def test_dark_follows_the_system_until_the_button_decides(page):
    light = background(page)
    emulate(page, dark=True)
    dark = background(page)
    assert dark != light
    find(page, "#theme").click()
    assert background(page) == light
    emulate(page)
    find(page, "#theme").click()
    assert background(page) == dark


def test_printed_it_is_light_and_without_buttons(page):
    light = background(page)
    emulate(page, dark=True, medium="print")
    assert background(page) != light and background(page) == "rgb(255, 255, 255)"
    assert not find(page, "#theme").is_displayed() and not find(page, "nav").is_displayed()
    pdf = base64.b64decode(page.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") >= 3
