"""Networks, training draws and trainers where modalities have several channels."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import test_trainer_steps
import tiny
import torch
from networks import images, stock_unet, train_adapters
from test_modality_groups import GROUPED, GROUPS, dataset_json
from test_trainer_steps import CONFIGURATION, TRAINERS, batch

from nnunetv2_unimrseg.config import Stage1Config
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.augmentation import draw_corruption
from nnunetv2_unimrseg.method.networks.unet import MissingModalityUNet, zero_missing
from nnunetv2_unimrseg.nnunet.modalities_in_plans import MODALITIES_KEY
from nnunetv2_unimrseg.planners.memory import view_cost
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.trainers.segmentation import mark_missing
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer

CHANNELS = GROUPED.channels
LACKS_ANATOMY = torch.tensor([[False, True, True], [True, False, True]])


def grouped_unet() -> MissingModalityUNet:
    torch.manual_seed(0)
    network = MissingModalityUNet(stock_unet("plain"), CHANNELS, adapters=True).eval()
    train_adapters(network)
    return network


@pytest.mark.parametrize("channel", CHANNELS[0])
def test_nan_in_one_channel_of_a_modality_makes_all_of_it_missing(channel):
    network, x = grouped_unet(), images()
    marked = x.clone()
    marked[0, channel, 0, 0, 0] = math.nan
    marked[1, 1] = math.nan
    zeroed, available = zero_missing(marked, CHANNELS)
    assert available.equal(LACKS_ANATOMY)
    assert not zeroed[0, [0, 2]].any() and not zeroed[1, 1].any()
    assert zeroed[0, [1, 3]].equal(x[0, [1, 3]]) and zeroed[1, [0, 2, 3]].equal(x[1, [0, 2, 3]])
    with torch.no_grad():
        assert network(marked).equal(network(x, LACKS_ANATOMY))
        assert not network(x).equal(network(x, LACKS_ANATOMY))


def test_adapters_count_modalities():
    network = grouped_unet()
    assert network.num_modalities == 3
    assert {len(adapter.scale) for adapter in network.adapters} == {3}


def test_modalities_of_one_channel_each_may_be_given_by_their_number():
    torch.manual_seed(0)
    network = MissingModalityUNet(stock_unet("plain"), 4, adapters=False)
    assert network.channels == ((0,), (1,), (2,), (3,))


def test_validation_marks_all_channels_of_a_modality():
    x = torch.cat((images(), images(channels=2)), 1)  # the last two as of a cascade
    marked = mark_missing(x, LACKS_ANATOMY, CHANNELS)
    missing = [[0, 2], [1]]
    for sample, channels in enumerate(missing):
        kept = [channel for channel in range(6) if channel not in channels]
        assert marked[sample, channels].isnan().all() and marked[sample, kept].equal(x[sample, kept])


def test_modalities_of_as_many_channels_change_places_as_wholes():
    channels = ((0, 3), (1,), (2, 4), (5,))
    config = replace(Stage1Config(), shuffle_probability=1.0, mask_ratio=0.5)
    corruption = draw_corruption((200, 6, 16, 16), config, torch.Generator().manual_seed(0), channels)
    seen = {tuple(row) for row in corruption.source.tolist()}
    pairs, singles = [(0, 2, 3, 4), (2, 0, 4, 3)], [(1, 5), (5, 1)]
    assert seen == {(pair[0], single[0], pair[1], pair[2], pair[3], single[1]) for pair in pairs for single in singles}
    for together in channels[0], channels[2]:
        first, second = together
        assert corruption.available[:, first].equal(corruption.available[:, second])
        assert corruption.masked_blocks[:, first].equal(corruption.masked_blocks[:, second])
    assert not corruption.masked_blocks[:, 0].equal(corruption.masked_blocks[:, 2])
    assert 0.4 < corruption.available[:, 0].float().mean() < 0.7


def test_without_groups_the_draws_are_as_ever():
    shape = (3, 4, 16, 16)
    first = draw_corruption(shape, Stage1Config(), torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    permuted = torch.rand(3, 4, generator=generator).argsort(1)
    shuffled = torch.rand(3, 1, generator=generator) < 0.5
    assert first.source.equal(torch.where(shuffled, permuted, torch.arange(4).expand(3, 4)))
    masked = torch.rand(3, 4, 4, generator=generator).argsort(-1) < 1
    assert first.masked_blocks.equal(masked.view(3, 4, 2, 2))


def test_memory_is_that_of_adapters_for_fewer_modalities():
    configuration = tiny.plans()["configurations"]["3d_fullres"]
    costs = [view_cost(configuration["architecture"], (16, 16, 16), one, 3, {}) for one in (4, CHANNELS)]
    assert costs[0] == costs[1]


@pytest.fixture
def folders(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    cases = tmp_path / "preprocessed" / "Dataset998_Tiny" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()


def make(trainer: type, groups: object = GROUPS) -> torch.nn.Module:
    made = test_trainer_steps.plans({trainer.section: {"cpu_precision": "float32"}})
    made["configurations"][CONFIGURATION][MODALITIES_KEY] = groups
    return trainer({**made, "continue_training": False}, CONFIGURATION, 0, dataset_json(), torch.device("cpu"))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_steps_learn_and_validate(trainer, folders):
    made = make(trainer)
    made.initialize()
    made.network.train()
    data = batch()
    data["data"][1] = data["data"][0]
    data["data"][1, [0, 2]] = math.nan
    before = {key: value.clone() for key, value in made.network.state_dict().items()}
    assert math.isfinite(made.train_step(data)["loss"])
    assert any(not value.equal(before[key]) for key, value in made.network.state_dict().items())
    assert all(value.isfinite().all() for value in made.network.state_dict().values())
    made.network.eval()
    made.on_validation_epoch_start()
    with torch.no_grad():
        assert math.isfinite(made.validation_step(data)["loss"])


def test_stage_1_reconstructs_every_channel(folders):
    made = make(UniMRSegStage1Trainer)
    made.initialize()
    data = batch()["data"][:1].clone()
    data[0, 2] = math.nan
    corrupted, prediction, target, known = made._reconstruct(data)
    assert corrupted.shape == prediction.shape == target.shape == (1, 4, 16, 16, 16)
    assert known.tolist() == [[False, True, False, True]]
    assert not target[0, [0, 2]].any()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_refuses_plans_that_group_otherwise(trainer):
    assert trainer.__name__ in TRAINER_OF_SECTION.values()
    with pytest.raises(UserError, match="do not group the channels alike"):
        make(trainer, {"A": [0, 1], "B": [2, 3]})
