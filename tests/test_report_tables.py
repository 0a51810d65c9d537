from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from evaluations import made_up

from nnunetv2_unimrseg.evaluation.summary import by_subset, over_subsets
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.reports.tables import (
    as_latex,
    as_markdown,
    as_text,
    latex_escaped,
    markdown_escaped,
    subset_table,
    table_with_averages,
)

CT_PET = Modalities(["CT", "PET"])
THREE = {(True, True): [0.9, 0.7], (False, True): [0.5, float("nan")], (True, False): [0.3, 0.1]}


def test_rows_come_by_number_then_in_channel_order_and_averages_are_of_the_known_figures():
    table = table_with_averages(THREE, CT_PET, ["a", "b"], "Dice (%)", factor=100)
    assert table.subsets == [(True, False), (False, True), (True, True)]
    assert table.values == [["30.0", "10.0"], ["50.0", "-"], ["90.0", "70.0"]]
    assert table.averages == {
        "mean of the 2 incomplete": ["40.0", "10.0"],
        "mean of all 3": ["56.7", "40.0"],
        "standard deviation over all 3": [f"{np.std([30, 50, 90]):.1f}", "30.0"],
    }


def test_without_the_complete_subset_only_all_are_averaged():
    table = table_with_averages({(True, False): [0.1], (False, True): [0.2]}, CT_PET, ["a"], "")
    assert list(table.averages) == ["mean of all 2", "standard deviation over all 2"]
    assert table_with_averages({(True, False): [0.1]}, CT_PET, ["a"], "").averages == {}


@pytest.mark.parametrize(("figure", "factor"), [("dice", 100), ("hd95_mm", 1), ("failure_rate", 100)])
def test_the_table_of_an_evaluation_agrees_with_its_summary(figure, factor):
    evaluation = made_up()
    table = subset_table(evaluation, figure)
    averages = over_subsets(evaluation, by_subset(evaluation))
    for group, name in (("incomplete", "mean of the 14 incomplete"), ("all", "mean of all 15")):
        expected = averages[averages["group"] == group].set_index("label")[figure]
        assert table.averages[name] == [f"{factor * expected[label]:.1f}" for label in table.columns]
    spread = averages[averages["group"] == "all"].set_index("label")[f"{figure}_sd"]
    shown = table.averages["standard deviation over all 15"]
    assert shown == [f"{factor * spread[label]:.1f}" for label in table.columns]


def test_text_is_aligned():
    lines = as_text(subset_table(made_up())).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        "FLAIR",
        "T1",
        "T1ce",
        "T2",
        "edema",
        "non_enhancing_tumour",
        "enhancing_tumour",
        "mean",
    ]
    assert [line[2] for line in lines[2:6]] == ["●", "○", "○", "○"]
    assert lines[-1].startswith("standard deviation over all 15")


def test_markdown_has_as_many_cells_in_every_row_and_shows_names_literally():
    evaluation = made_up(modalities=["T1|c", "[18F]FDG"], labels=["a*b*", "non_enhancing", "_x_"])
    lines = as_markdown(subset_table(evaluation)).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {7}
    assert lines[0] == r"| T1\|c | \[18F\]FDG | a\*b\* | non_enhancing | \_x\_ | mean |"
    assert lines[2].startswith("| ● | ○ |")


def test_latex_has_as_many_columns_in_every_row_and_balanced_braces():
    modalities, labels = ["T1_c", "50%"], ["a & b", "x^2~{y}", "back\\slash"]
    text = as_latex(subset_table(made_up(modalities=modalities, labels=labels, name="A_b#1")), "tab:dice")
    assert r"\begin{tabular}{ccrrrr}" in text
    assert r"\label{tab:dice}" in text and r"\caption{A\_b\#1: Dice (\%)" in text
    assert r"\usepackage{booktabs}" in text
    body = text[text.index(r"\midrule") :]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert [row.count(r"$\bullet$") for row in rows] == [1, 1, 2, 0, 0, 0]
    for row in rows:
        span = 2 if r"\multicolumn{2}" in row else 1
        assert len(re.findall(r"(?<!\\)&", row)) + span == 6
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")


def test_latex_and_markdown_escapes():
    assert latex_escaped("a_b & 5% $x$ {#} ~^\\") == (
        r"a\_b \& 5\% \$x\$ \{\#\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert markdown_escaped("<b>_x y_z`|") == r"\<b\>\_x y_z\`\|"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    hostile = ["a & b_c", "50% {x}", "$y^2$ ~ <#>", "[18F]FDG | back\\slash", '"quoted"']
    table = as_latex(subset_table(made_up(modalities=hostile, labels=hostile, num_cases=1, name="A_b")), "tab:dice")
    document = (
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{table}\ref{{tab:dice}}\end{{document}}"
    )
    (tmp_path / "table.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:]
