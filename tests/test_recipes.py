"""Recipes set what they say and leave all else alone."""

from __future__ import annotations

import json

import pytest

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.recipes import RECIPES, apply_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_differs_from_the_defaults(name):
    _, settings = RECIPES[name]
    values = UniMRSegConfig.from_dict(settings).to_dict()
    defaults = UniMRSegConfig().to_dict()
    for section, fields in settings.items():
        for field in fields:
            assert values[section][field] != defaults[section][field], (section, field)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_replaces_another_and_keeps_what_no_recipe_sets(name):
    own = {"stage1": {"save_every": 3}, "stage2": {"contrastive_weight": 0.2}}
    for before in RECIPES:
        result = apply_recipe(name, apply_recipe(before, own))
        assert result == apply_recipe(name, own)
        assert result["stage1"]["save_every"] == 3 and result["stage2"]["contrastive_weight"] == 0.2
    assert apply_recipe("default", apply_recipe(name, {})) == {}
    assert own == {"stage1": {"save_every": 3}, "stage2": {"contrastive_weight": 0.2}}


def test_in_a_short_training_one_decay_goes_over_stages_2_and_3():
    short = UniMRSegConfig.from_dict(RECIPES["short"][1])
    assert short.stage2.final_lr == short.stage3.initial_lr < short.stage2.initial_lr


def test_configure_applies_a_recipe_before_what_is_set(planned, capsys):
    command = ["configure", "-d", "7", "-c", "3d_fullres"]

    def run(*more: str) -> dict:
        assert main([*command, *more, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert run("--set", "stage1.save_every=3")["stage1"]["save_every"] == 3
    values = run("--recipe", "short", "--set", "stage2.num_epochs=32")
    assert values["stage2"]["num_epochs"] == 32 and values["stage3"]["num_epochs"] == 3
    assert values["stage1"]["save_every"] == 3
    values = run("--recipe", "default", "--unset", "stage1.save_every")
    assert values == UniMRSegConfig().to_dict()
    assert "unimrseg" not in json.loads(planned.read_text())["configurations"]["3d_fullres"]
