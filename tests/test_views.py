"""Views of a step that share the planned batch: samples, passes, and what the loader is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module

from nnunetv2_unimrseg.config import ModalityDropoutConfig, Stage1Config, Stage2Config, Stage3Config
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer
from nnunetv2_unimrseg.views import incomplete_views, passes_per_step, samples_per_step, views_per_sample

OF_ONE_VIEW = (UniMRSegStage1Trainer, UniMRSegModalityDropoutTrainer)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))


@pytest.mark.parametrize(
    ("subsets", "num_modalities", "expected"),
    [(1, 2, 1), (1, 4, 1), (3, 4, 3), (2, 2, 2), (5, 2, 2), (20, 4, 14), ("all", 2, 2), ("all", 3, 6), ("all", 5, 30)],
)
def test_incomplete_views_of_stage_3_are_those_it_deals(subsets, num_modalities, expected):
    settings = Stage3Config(subsets_per_step=subsets)
    assert incomplete_views(settings, num_modalities) == expected
    assert views_per_sample(settings, num_modalities) == 1 + expected
    stage = instance(UniMRSegStage3Trainer, num_modalities=num_modalities, subsets_per_step=subsets)
    dealt = stage._deal_subsets(3)
    assert [tuple(subset.shape) for subset in dealt] == [(3, num_modalities)] * expected


SHARED = {"views_share_batch": True}
APART = {"views_share_batch": False}


@pytest.mark.parametrize(
    ("settings", "batch_size", "samples", "passes"),
    [
        (Stage1Config(), 2, 2, 2),
        (ModalityDropoutConfig(), 5, 5, 5),
        (Stage2Config(**SHARED), 2, 1, 2),
        (Stage2Config(**SHARED), 1, 1, 2),
        (Stage2Config(**SHARED), 5, 2, 4),
        (Stage2Config(**SHARED), 12, 6, 12),
        (Stage2Config(**APART), 5, 5, 10),
        (Stage3Config(subsets_per_step=1, **SHARED), 2, 1, 2),
        (Stage3Config(subsets_per_step=2, **SHARED), 2, 1, 3),
        (Stage3Config(subsets_per_step=2, **SHARED), 7, 2, 6),
        (Stage3Config(subsets_per_step="all", **SHARED), 2, 1, 15),
        (Stage3Config(subsets_per_step="all", **SHARED), 49, 3, 45),
        (Stage3Config(subsets_per_step=2, **APART), 2, 2, 6),
        (Stage3Config(subsets_per_step="all", **APART), 2, 2, 30),
    ],
)
def test_samples_and_passes_of_a_step(settings, batch_size, samples, passes):
    assert samples_per_step(settings, 4, batch_size) == samples
    assert passes_per_step(settings, 4, batch_size) == passes


@pytest.mark.parametrize("subsets", [1, 2, 3, "all"])
@pytest.mark.parametrize("batch_size", range(1, 40, 3))
def test_shared_views_cost_no_more_than_the_batch_unless_one_sample_does(subsets, batch_size):
    settings = Stage3Config(subsets_per_step=subsets, **SHARED)
    views = views_per_sample(settings, 4)
    passes = passes_per_step(settings, 4, batch_size)
    assert passes <= max(batch_size, views)
    assert passes + views > batch_size


def instance(trainer: type, *, batch_size: int = 2, num_modalities: int = 4, **settings: object):
    plans = tiny.plans(tiny.NORMALISERS[:num_modalities] + ("ZScoreNormalization",) * (num_modalities - 4))
    plans["continue_training"] = False
    plans["configurations"]["3d_fullres"]["batch_size"] = batch_size
    plans["configurations"]["3d_fullres"]["unimrseg"] = {trainer.section: settings}
    names = tuple(f"modality {number}" for number in range(num_modalities))
    return trainer(plans, "3d_fullres", 0, tiny.dataset_json(names), torch.device("cpu"))


class RecordedLoader:
    """Takes the place of nnU-Net's loader and keeps what it is told."""

    def __init__(self, _data: object, batch_size: int, *_sizes: object, **options: object) -> None:
        self.batch_size = batch_size
        self.share = options["oversample_foreground_percent"]
        self.by_chance = options["probabilistic_oversampling"]

    def __iter__(self) -> RecordedLoader:
        return self

    def __next__(self) -> dict:
        return {}


def loaders(made, monkeypatch) -> list[RecordedLoader]:
    """Return the training and the validation loader that the trainer makes."""
    monkeypatch.setattr(stock_module, "nnUNetDataLoader", RecordedLoader)
    monkeypatch.setattr(stock_module, "SingleThreadedAugmenter", lambda loader, _: loader)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    made.dataset_class = object
    made.get_tr_and_val_datasets = lambda: (None, None)
    made._set_batch_size_and_oversample()
    return list(made.get_dataloaders())


def stock_share(batch_size: int, share: float) -> float:
    """Return the share of a batch's patches that stock nnU-Net's loader takes from foreground."""
    loader = SimpleNamespace(batch_size=batch_size, oversample_foreground_percent=share)
    return sum(nnUNetDataLoader._oversample_last_XX_percent(loader, index) for index in range(batch_size)) / batch_size


@pytest.mark.parametrize(
    ("trainer", "settings", "batch_size", "samples"),
    [
        (UniMRSegStage2Trainer, {}, 2, 1),
        (UniMRSegStage2Trainer, {}, 5, 2),
        (UniMRSegStage2Trainer, {}, 12, 6),
        (UniMRSegStage3Trainer, {"subsets_per_step": 1}, 2, 1),
        (UniMRSegStage3Trainer, {"subsets_per_step": 2}, 7, 2),
        (UniMRSegStage3Trainer, {"subsets_per_step": "all"}, 3, 1),
    ],
)
@pytest.mark.parametrize("share", [0.33, 0.0, 0.7, 1.0])
def test_the_loader_gives_fewer_samples_and_the_same_share_of_foreground(
    trainer, settings, batch_size, samples, share, monkeypatch
):
    made = instance(
        trainer, batch_size=batch_size, views_share_batch=True, oversample_foreground_percent=share, **settings
    )
    for loader in loaders(made, monkeypatch):
        assert loader.batch_size == samples
        assert loader.by_chance is True
        assert loader.share == pytest.approx(stock_share(batch_size, share))
    if (batch_size, share) == (2, 0.33):
        assert loader.share == 0.5


def test_a_batch_of_one_sample_draws_foreground_as_often_as_stock(monkeypatch):
    made = instance(UniMRSegStage2Trainer, views_share_batch=True, oversample_foreground_percent=0.33)
    training, _ = loaders(made, monkeypatch)
    loader = SimpleNamespace(oversample_foreground_percent=training.share)
    np.random.seed(0)
    drawn = [nnUNetDataLoader._probabilistic_oversampling(loader, 0) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("trainer", "settings", "batch_size"),
    [
        (UniMRSegStage2Trainer, APART, 2),
        (UniMRSegStage3Trainer, {"subsets_per_step": "all", **APART}, 5),
        (UniMRSegStage2Trainer, SHARED, 1),
        (UniMRSegStage3Trainer, SHARED, 1),
        *((trainer, {}, batch_size) for trainer in OF_ONE_VIEW for batch_size in (1, 2, 5)),
    ],
)
def test_nothing_changes_for_views_apart_one_sample_or_one_view(trainer, settings, batch_size, monkeypatch):
    made = instance(trainer, batch_size=batch_size, oversample_foreground_percent=0.33, **settings)
    for loader in loaders(made, monkeypatch):
        assert (loader.batch_size, loader.share, loader.by_chance) == (batch_size, 0.33, False)


@pytest.mark.parametrize(("rank", "share"), [(0, 0.0), (1, 0.5)])
def test_ranks_keep_the_share_of_their_part_of_the_batch(rank, share, monkeypatch):
    """Stock nnU-Net takes the last of four patches from foreground, which falls to the second of two ranks."""
    made = instance(UniMRSegStage2Trainer, batch_size=4, views_share_batch=True, oversample_foreground_percent=0.33)
    made.is_ddp = True
    monkeypatch.setattr(stock_module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(stock_module.dist, "get_rank", lambda: rank)
    made._set_batch_size_and_oversample()
    assert (made.batch_size, made.oversample_foreground_percent) == (1, share)
    assert made.probabilistic_oversampling is True
