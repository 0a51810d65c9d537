"""The configuration: defaults, validation, plans."""

from __future__ import annotations

import dataclasses

import pytest

from nnunetv2_unimrseg.config import TrainingConfig, UniMRSegConfig
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.step_cost import passes_per_sample


@pytest.mark.parametrize("num_modalities", [2, 3, 4, 6])
def test_three_stages_cost_what_one_stock_training_costs(num_modalities):
    config, stock = UniMRSegConfig(), TrainingConfig()
    stages = (config.stage1, config.stage2, config.stage3)
    passes = sum(
        settings.num_epochs * settings.num_iterations_per_epoch * passes_per_sample(settings, num_modalities)
        for settings in stages
    )
    assert (stock.num_epochs, stock.num_iterations_per_epoch) == (1000, 250)
    assert passes == pytest.approx(stock.num_epochs * stock.num_iterations_per_epoch, rel=0.01)
    assert {settings.num_val_iterations_per_epoch for settings in stages} == {stock.num_val_iterations_per_epoch}


def test_all_problems_at_once_with_the_nearest_name():
    with pytest.raises(UserError) as error:
        UniMRSegConfig.from_dict(
            {
                "stage1": {"num_epoch": 1, "mask_ratio": 2, "num_iterations_per_epoch": 1.5},
                "stag2": {},
                "stage2": {"views": "two_subset", "stage1_decoder": 1, "negatives_memory": -1},
                "stage3": {"subsets_per_step": "al", "num_epochs": True, "adapters": "no", "final_lr": -1e-3},
            }
        )
    message = str(error.value)
    assert "11 problem(s)" in message
    for words in (
        "unknown key 'stage1.num_epoch'. Did you mean 'num_epochs'?", "stage1.mask_ratio = 2: must be from 0.0 to 0.95",
        "stage1.num_iterations_per_epoch = 1.5: must be a whole number",
        "unknown section 'stag2'. Did you mean 'stage2'?",
        "Did you mean 'two_subsets'?", "stage2.stage1_decoder = 1", "stage3.subsets_per_step = 'al'",
        "stage3.num_epochs = True", "stage2.negatives_memory = -1: must be at least 0", "stage3.adapters = 'no'",
        "stage3.final_lr = -0.001: must be at least 0.0",
    ):  # fmt: skip
        assert words in message


def test_plans_are_read_with_inheritance_and_defaults():
    plans = {
        "plans_name": "P",
        "configurations": {
            "3d_fullres": {"unimrseg": {"stage3": {"subsets_per_step": "all"}, "stage1": {"initial_lr": 1}}},
            "child": {"inherits_from": "3d_fullres"},
            "stock": {},
        },
    }
    child = UniMRSegConfig.from_plans(plans, "child")
    assert child.stage3.subsets_per_step == "all"
    assert child.stage1.initial_lr == 1.0 and isinstance(child.stage1.initial_lr, float)
    assert UniMRSegConfig.from_plans(plans, "stock") == UniMRSegConfig()
    with pytest.raises(UserError, match=r"no configuration '3d_fulres'\. Did you mean '3d_fullres'"):
        UniMRSegConfig.from_plans(plans, "3d_fulres")


@pytest.mark.parametrize("value", [float("nan"), -1, "1", None, True])
def test_numbers_must_be_in_range(value):
    with pytest.raises(UserError):
        UniMRSegConfig.from_dict({"stage2": {"contrastive_weight": value}})


def test_every_field_is_documented_and_its_default_valid():
    config = UniMRSegConfig()
    assert UniMRSegConfig.from_dict(config.to_dict()) == config
    for section in dataclasses.fields(config):
        for field in dataclasses.fields(getattr(config, section.name)):
            assert len(field.metadata["doc"]) > 10, field.name


def test_what_older_plans_hold_of_obsolete_settings_has_no_effect():
    older = {"stage3": {"checkpoint_views": True, "num_epochs": 7}}
    assert UniMRSegConfig.from_dict(older) == UniMRSegConfig.from_dict({"stage3": {"num_epochs": 7}})
    with pytest.raises(UserError, match=r"unknown key 'stage1\.checkpoint_views'"):
        UniMRSegConfig.from_dict({"stage1": {"checkpoint_views": True}})
