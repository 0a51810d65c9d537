"""Stage 1's figures and pictures, and the progress plot."""

from __future__ import annotations

import math

import matplotlib.image
import pytest
import torch

from nnunetv2_unimrseg.method.reconstruction_metrics import missing_patterns, reconstruction_scores, summarise
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.trainers.progress import ProgressLogger
from nnunetv2_unimrseg.trainers.reconstruction import write_reconstruction_figure

NAMES = Modalities(("CT", "PET"))


def test_patterns_are_all_incomplete_subsets_or_leave_one_out():
    assert len(missing_patterns(4)) == 14
    assert len(missing_patterns(5)) == 5
    assert len(missing_patterns(40)) == 40


def test_scores_against_plain_formulas():
    torch.manual_seed(0)
    target, reconstruction = torch.randn(2, 9, 10, 11), torch.randn(2, 9, 10, 11)
    for channel, scores in enumerate(reconstruction_scores(reconstruction, target, 7)):
        error = (reconstruction[channel] - target[channel]).double()
        spread = (target[channel].max() - target[channel].min()).double()
        assert scores["L1"] == pytest.approx(error.abs().mean().item(), abs=1e-5)
        assert scores["PSNR"] == pytest.approx(20 * math.log10(spread / error.square().mean().sqrt()), abs=1e-3)
        assert -1 <= scores["SSIM"] <= 1
    assert reconstruction_scores(target, target, 7)[0]["PSNR"] == math.inf


def test_summary_averages_over_cases_and_over_missing_modalities():
    def case(name: str, value: float) -> dict:
        figures = dict.fromkeys(("L1", "PSNR", "SSIM"), value)
        return {"case": name, "metrics": {"CT": {"CT": figures, "PET": {key: 10 * v for key, v in figures.items()}}}}

    summary = summarise([case("a", 1.0), case("b", 3.0)], NAMES)
    assert summary["mean"]["CT"]["CT"]["L1"] == 2
    assert summary["missing_modalities_mean"]["L1"] == 20
    assert [entry["case"] for entry in summary["metric_per_case"]] == ["a", "b"]


def test_a_case_counts_where_it_was_scored():
    scores = [{name: dict.fromkeys(("L1", "PSNR", "SSIM"), value) for name in NAMES} for value in (1.0, 3.0)]
    cases = [
        {"case": "a", "metrics": {"CT": scores[0], "PET": scores[0]}},
        {"case": "b", "metrics": {"PET": scores[1]}},
    ]
    mean = summarise(cases, NAMES)["mean"]
    assert mean["CT"]["PET"]["L1"] == 1
    assert mean["PET"]["CT"]["L1"] == 2
    assert "CT" not in summarise(cases[1:], NAMES)["mean"]
    assert summarise([{"case": "c", "metrics": {}}], NAMES)["missing_modalities_mean"] == {}


@pytest.mark.parametrize("size", [(8, 9, 10), (9, 10)])
def test_figures_are_pictures(tmp_path, size):
    patch = torch.rand(2, *size)
    write_reconstruction_figure(tmp_path / "reconstruction.png", patch, patch, patch, NAMES, "title")
    assert matplotlib.image.imread(tmp_path / "reconstruction.png").std() > 0
    logger = ProgressLogger({"val_l1": "L1"}, "reconstruction", keeps_dice=False)
    assert "mean_fg_dice" not in logger.my_fantastic_logging
    for key in logger.my_fantastic_logging:
        logger.log(key, 1.0, 0)
    logger.plot_progress_png(str(tmp_path))
    assert matplotlib.image.imread(tmp_path / "progress.png").std() > 0


def test_names_that_hold_a_plus_are_told_apart():
    modalities = Modalities(("T1", "T1+C"))
    figures = {
        "T1": {"T1": 1.0, "T1+C": 5.0},
        "T1+C": {"T1": 7.0, "T1+C": 1.0},
    }
    metrics = {
        pattern: {name: dict.fromkeys(("L1", "PSNR", "SSIM"), value) for name, value in entries.items()}
        for pattern, entries in figures.items()
    }
    summary = summarise([{"case": "a", "metrics": metrics}], modalities)
    assert summary["missing_modalities_mean"]["L1"] == 6


def test_cases_without_the_modality_do_not_count():
    target = torch.randn(2, 8, 8, 8)
    target[1] = math.nan
    scores = reconstruction_scores(torch.randn(2, 8, 8, 8), target, 7)
    assert math.isfinite(scores[0]["L1"])
    assert all(math.isnan(value) for value in scores[1].values())
    complete = [dict.fromkeys(("L1", "PSNR", "SSIM"), 2.0)] * 2
    cases = [
        {"case": name, "metrics": {"CT": dict(zip(NAMES, entry, strict=True))}}
        for name, entry in (("a", scores), ("b", complete))
    ]
    assert summarise(cases, NAMES)["mean"]["CT"]["PET"]["L1"] == 2


def test_the_log_names_what_it_plots(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    shown = []
    monkeypatch.setattr(plt, "close", shown.append)
    logger = ProgressLogger({"val_l1": "validation L1"}, "reconstruction error", keeps_dice=False)
    for epoch in range(3):
        for key in logger.my_fantastic_logging:
            logger.log(key, float(epoch), epoch)
    logger.log("train_losses", 3.0, 3)
    logger.plot_progress_png(str(tmp_path))
    (figure,) = shown
    monkeypatch.undo()
    plt.close(figure)
    texts = [text.get_text() for axes in figure.axes for text in (axes.yaxis.label, *_legend(axes))]
    assert "reconstruction error" in texts and "validation L1" in texts
    assert not any("dice" in text.lower() for text in texts)
    assert len(figure.axes[0].lines[0].get_xdata()) == 3


def _legend(axes) -> list:
    return axes.get_legend().get_texts() if axes.get_legend() else []
