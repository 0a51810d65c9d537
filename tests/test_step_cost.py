"""How many views a step looks at, what that costs, and that the trainers look at just as many."""

from __future__ import annotations

import pytest
import tiny
import torch
from networks import images, unet

from nnunetv2_unimrseg.config import ModalityDropoutConfig, RetrofitConfig, Stage1Config, Stage2Config, Stage3Config
from nnunetv2_unimrseg.method.step_cost import incomplete_views, passes_per_sample
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

pytestmark = pytest.mark.usefixtures("folders")


@pytest.fixture(autouse=True)
def same_draws():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("subsets", "num_modalities", "expected"),
    [(1, 2, 1), (1, 4, 1), (3, 4, 3), (2, 2, 2), (5, 2, 2), (20, 4, 14), ("all", 2, 2), ("all", 3, 6), ("all", 5, 30)],
)
def test_incomplete_views_of_stage_3_are_those_it_deals(subsets, num_modalities, expected):
    settings = Stage3Config(pairs_every=1, subsets_per_step=subsets)
    assert incomplete_views(settings, num_modalities) == expected
    assert passes_per_sample(settings, num_modalities) == 1 + expected
    dealt = tiny.trainer(
        UniMRSegStage3Trainer,
        names=[f"modality {number}" for number in range(num_modalities)],
        subsets_per_step=subsets,
    )._deal_subsets(3)
    assert [tuple(subset.shape) for subset in dealt] == [(3, num_modalities)] * expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Stage1Config(), 1),
        (ModalityDropoutConfig(), 1),
        (Stage2Config(pairs_every=1, second_view="network"), 1),
        (Stage2Config(pairs_every=10, contrastive_weight=0.0), 1),
        (Stage2Config(pairs_every=1), 7 / 6),
        (Stage2Config(pairs_every=4), 25 / 24),
        (Stage3Config(pairs_every=1, subsets_per_step=2), 3),
        (Stage3Config(pairs_every=5, subsets_per_step=2), 1.4),
        (RetrofitConfig(subsets_per_step=2), 7 / 3),
    ],
)
@pytest.mark.parametrize("num_modalities", [2, 4, 7])
def test_passes_of_a_sample(settings, expected, num_modalities):
    assert passes_per_sample(settings, num_modalities) == pytest.approx(expected)


def with_network(trainer: type, **settings: object):
    """A trainer that records the subsets its network is given; its loss is the mean logit."""
    made = tiny.trainer(trainer, **settings)
    made.network = unet(adapters=trainer is UniMRSegStage3Trainer)
    made.loss = lambda logits, _target: logits.mean()
    made.seen = []
    everything = torch.ones(2, 4, dtype=torch.bool)
    made.network.register_forward_pre_hook(
        lambda _network, given, _options: made.seen.append(given[1] if len(given) > 1 else everything[: len(given[0])]),
        with_kwargs=True,
    )
    return made


def step(made) -> torch.Tensor:
    return made.compute_loss(images(), torch.zeros(2, 1, 16, 16, 16), {"keys": ["patient_1", "patient_2"]})


@pytest.mark.parametrize(
    ("trainer", "settings"),
    [
        (UniMRSegModalityDropoutTrainer, {}),
        (UniMRSegStage2Trainer, {"pairs_every": 1, "second_view": "network"}),
        (UniMRSegStage2Trainer, {"pairs_every": 3, "second_view": "network"}),
        (UniMRSegStage3Trainer, {"pairs_every": 1, "subsets_per_step": 2}),
        (UniMRSegStage3Trainer, {"pairs_every": 3, "subsets_per_step": "all"}),
    ],
)
def test_trainers_look_at_as_many_views_as_are_counted(trainer, settings):
    made = with_network(trainer, **settings)
    for number in range(6):
        made.current_epoch = number // 2
        step(made)
    assert sum(map(len, made.seen)) == pytest.approx(6 * 2 * passes_per_sample(made.settings, 4))


@pytest.mark.parametrize("views", ["two_subsets", "complete_and_incomplete"])
def test_stage_2_compares_pairs_in_every_nth_step_and_else_sees_one_view_of_each_sample(monkeypatch, views):
    made = with_network(
        UniMRSegStage2Trainer, pairs_every=3, second_view="network", views=views, contrastive_weight=0.5
    )
    pair = [torch.tensor([[True, True, False, False]]), torch.tensor([[False, False, True, True]])]
    monkeypatch.setattr(made, "_draw_views", lambda _: pair)
    complete = []
    for number in range(1, 91):
        made.seen.clear()
        before = len(made.memory.patients)
        loss = step(made)
        if number % 3 == 0:
            assert [subset.tolist() for subset in made.seen] == [subset.tolist() for subset in pair]
            assert len(made.memory.patients) == min(before + 1, made.memory.size)
            continue
        (subset,) = made.seen
        torch.testing.assert_close(loss, made.network(images(), subset).mean())
        assert len(made.memory.patients) == before
        complete += subset.all(1).tolist()
    expected = 0.5 if views == "complete_and_incomplete" else 1 / 15
    assert sum(complete) / len(complete) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("subsets_per_step", [1, 3, "all"])
def test_stage_3_compares_views_in_every_nth_step_and_else_sees_one_of_them(subsets_per_step):
    made = with_network(UniMRSegStage3Trainer, pairs_every=3, subsets_per_step=subsets_per_step)
    for number in range(1, 7):
        made.seen.clear()
        step(made)
        if number % 3:
            (subset,) = made.seen
            assert subset.any(1).all()
        else:
            assert len(made.seen) == 1 + incomplete_views(made.settings, 4)
            assert not torch.stack(made.seen[1:]).all(2).any()


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_stage_3_gives_single_views_the_labels_of_a_pair_on_average(weight):
    """(loss(complete) + weight * loss(incomplete)) / (1 + weight) = E[loss(view)], P(complete) = 1 / (1 + weight)."""
    made = with_network(UniMRSegStage3Trainer, pairs_every=10**6, incomplete_label_weight=weight)
    complete = []
    with torch.no_grad():
        for _ in range(100):
            loss = step(made)
            subset = made.seen.pop()
            complete += subset.all(1).tolist()
        torch.testing.assert_close(loss, made.network(images(), subset).mean())
    assert sum(complete) / len(complete) == pytest.approx(1 / (1 + weight), abs=0.12)


@pytest.mark.parametrize("trainer", [UniMRSegStage2Trainer, UniMRSegStage3Trainer])
@pytest.mark.parametrize("share", [0.33, 0.75])
def test_batch_and_share_of_foreground_are_stocks(trainer, share):
    made = tiny.trainer(trainer, oversample_foreground_percent=share)
    made._set_batch_size_and_oversample()
    planned = made.configuration_manager.batch_size
    assert (made.batch_size, made.oversample_foreground_percent) == (planned, share)
    assert made.probabilistic_oversampling is False
