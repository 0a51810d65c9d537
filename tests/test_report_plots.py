from __future__ import annotations

import numpy as np
import pytest
from evaluations import made_up
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_unimrseg.evaluation.summary import adding_modalities, by_subset
from nnunetv2_unimrseg.evaluation.summary import cost_of_losing as cost_figures
from nnunetv2_unimrseg.reports import plots

FIVE = ["A", "B", "C", "D", "T1 post contrast agent"]


@pytest.fixture
def drawn(monkeypatch):
    """Collect the figures that are saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs))
    )
    return figures


def texts_of(axes):
    return [text for text in axes.texts if text.get_text()]


@pytest.mark.parametrize("modalities", [["CT", "PET"], ["FLAIR", "T1", "T1ce", "T2"], FIVE])
def test_the_heat_map_says_every_dice_and_its_texts_do_not_overlap(tmp_path, drawn, modalities):
    evaluation = made_up(modalities=modalities, labels=["whole tumour", "a$x$"])
    plots.heat_map(evaluation, tmp_path / "map.png")
    right = next(axes for axes in drawn[0].axes if axes.images)
    figures = by_subset(evaluation)
    assert [text.get_text() for text in right.texts] == [f"{100 * value:.1f}" for value in figures["dice"]]
    renderer = FigureCanvasAgg(drawn[0]).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in right.texts]
    assert not any(a.overlaps(b) for number, a in enumerate(boxes) for b in boxes[:number])
    assert [label.get_text() for label in right.get_xticklabels()] == ["whole tumour", r"a\$x\$", "mean"]
    assert min(Image.open(tmp_path / "map.png").size) > 150


def test_a_heat_map_of_very_many_subsets_has_no_figures_in_its_cells_and_stays_small(tmp_path, drawn):
    plots.heat_map(
        made_up(modalities=[f"M{number}" for number in range(8)], labels=["a"], num_cases=1), tmp_path / "m.png"
    )
    assert not any(texts_of(axes) for axes in drawn[0].axes)
    assert Image.open(tmp_path / "m.png").height < 6000


def test_boxes_hold_every_case_of_every_subset_of_a_size(tmp_path, drawn):
    evaluation = made_up(labels=["one"], num_cases=3)
    plots.boxes_by_number(evaluation, tmp_path / "boxes.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1\nn=12", "2\nn=18", "3\nn=12", "4\nn=3"]
    medians = sorted(float(line.get_ydata()[0]) for line in axes.lines if line.get_linewidth() == 2)
    expected = 100 * evaluation.scores.groupby("num_modalities")["dice"].median()
    assert medians == pytest.approx(sorted(expected))


def test_the_costs_are_those_of_the_summary(tmp_path, drawn):
    evaluation = made_up(labels=["one"])
    plots.cost_of_losing(evaluation, tmp_path / "costs.png")
    (axes,) = drawn[0].axes
    expected = cost_figures(evaluation, adding_modalities(evaluation))
    widths = [100 * value for column in ("from_complete", "mean") for value in expected[column]]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(widths)


def test_costs_that_were_not_evaluated_are_said_to_be_unknown(tmp_path, drawn):
    evaluation = made_up(labels=["one"])
    settings = {
        **evaluation.settings,
        "subsets": [e for e in evaluation.settings["subsets"] if len(e["available"]) < 3],
    }
    few = type(evaluation)(settings, evaluation.scores[evaluation.scores["num_modalities"] < 3])
    plots.cost_of_losing(few, tmp_path / "costs.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in texts_of(axes)][:4] == ["-"] * 4


def test_names_of_any_kind_can_be_drawn(tmp_path):
    evaluation = made_up(modalities=["$a_{", "b^$"], labels=["x_$1$ & <y>", "100 %"], num_cases=2)
    for plot in (plots.heat_map, plots.boxes_by_number, plots.cost_of_losing):
        plot(evaluation, tmp_path / "plot.png")
        assert np.asarray(Image.open(tmp_path / "plot.png")).std() > 1
