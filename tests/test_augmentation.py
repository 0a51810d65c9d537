"""Modality dropout, shuffle and block masking: the draws, and applying them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_unimrseg.config import Stage1Config, SubsetSamplingConfig
from nnunetv2_unimrseg.method.augmentation import (
    Corruption,
    ModalityCorruptionTransform,
    SubsetDeck,
    draw_corruption,
    draw_subsets,
)
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_uniform_over_subsets():
    drawn = draw_subsets(30000, 4, generator=seeded())
    counts = Counter(map(tuple, drawn.tolist()))
    assert len(counts) == 15
    assert max(abs(count - 2000) for count in counts.values()) < 5 * math.sqrt(2000)


def test_incomplete_draws_are_never_complete_nor_empty():
    drawn = draw_subsets(3000, 2, complete_allowed=False, generator=seeded())
    assert set(map(tuple, drawn.tolist())) == {(True, False), (False, True)}


def test_per_modality_probability():
    sampling = SubsetSamplingConfig(subset_sampling="per_modality", dropout_probability=0.2)
    drawn = draw_subsets(20000, 6, sampling, generator=seeded())
    assert drawn.any(1).all()
    assert (1 - drawn.float().mean(0)).sub(0.2).abs().max() < 0.02


@pytest.mark.parametrize("count", [20, 64])
def test_many_modalities_are_not_listed(count):
    drawn = torch.cat(
        [draw_subsets(50, count, complete_allowed=False, generator=seeded()), SubsetDeck(count, 1).deal(50)]
    )
    assert drawn.any(1).all()
    assert not drawn.all(1).any()


def test_deck_deals_every_incomplete_subset_equally_often():
    deck = SubsetDeck(3, seed=2)
    dealt = Counter(map(tuple, torch.cat([deck.deal(5) for _ in range(12)]).tolist()))
    assert len(dealt) == 6
    assert set(dealt.values()) == {10}


def test_shuffle_permutes_and_never_compacts():
    config = Stage1Config(shuffle_probability=1.0, mask_probability=0.0)
    draw = draw_corruption((200, 4, 6, 6, 6), config, seeded())
    assert torch.equal(draw.source.sort(1).values, torch.arange(4).expand(200, 4))
    assert len(set(map(tuple, draw.source.tolist()))) == 24
    x = torch.arange(1.0, 5).view(1, 4, 1, 1, 1).expand(200, 4, 6, 6, 6)
    corrupted, available = draw.apply(x)
    assert torch.equal(available, draw.available)
    kept_somewhere_but_in_front = (~available[:, 0]) & available[:, 1:].any(1)
    assert kept_somewhere_but_in_front.any()
    values = corrupted[..., 0, 0, 0]
    assert torch.equal(values, torch.where(available, draw.source + 1.0, 0.0))


def test_without_shuffle_channels_keep_their_order():
    draw = draw_corruption((50, 4, 6, 6), Stage1Config(shuffle_probability=0.0), seeded())
    assert torch.equal(draw.source, torch.arange(4).expand(50, 4))


def test_masked_blocks_are_blocks_of_the_given_share():
    config = Stage1Config(mask_ratio=0.25, mask_block_size=4, shuffle_probability=0.0)
    draw = draw_corruption((3, 2, 16, 14, 8), config, seeded())
    assert draw.block_size == (4, 4, 4)
    assert draw.masked_blocks.shape == (3, 2, 4, 4, 2)
    assert (draw.masked_blocks.flatten(2).sum(2) == 8).all()
    corrupted, available = draw.apply(torch.ones(3, 2, 16, 14, 8))
    full = torch.nn.functional.pad(corrupted, (0, 0, 0, 2), value=1.0)
    blocks = full.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).flatten(5)[:, :, :, :3]
    assert (blocks.amin(-1) == blocks.amax(-1)).all()
    assert ((corrupted == 0).flatten(2).all(2) == ~available).all()


def test_missing_channels_stay_missing_wherever_the_shuffle_moves_them():
    x = torch.randn(40, 4, 8, 8, 8)
    x[:, 2] = math.nan
    draw = draw_corruption(x.shape, Stage1Config(shuffle_probability=1.0), seeded())
    corrupted, available = draw.apply(x)
    assert torch.isfinite(corrupted).all()
    assert not available[draw.source == 2].any()
    marked, _ = draw.apply(x, fill=math.nan)
    assert torch.equal(torch.isnan(marked).flatten(2).all(2), ~available)


def test_a_draw_can_be_replayed_and_one_sample_equals_the_batch():
    config = Stage1Config(shuffle_probability=1.0)
    transform = ModalityCorruptionTransform(config)
    image = torch.randn(4, 9, 10, 11)
    draw = transform.get_parameters(image=image)
    once = transform.apply({"image": image.clone()}, **draw)["image"]
    again = transform.apply({"image": image.clone()}, **draw)["image"]
    assert torch.equal(once.nan_to_num(7), again.nan_to_num(7))
    batch, available = draw["corruption"].apply(image[None])
    assert torch.equal(once.nan_to_num(0), batch[0])
    assert torch.equal(torch.isnan(once).flatten(1).all(1), ~available[0])


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_nan_channels_survive_nnunets_whole_augmentation(dummy_2d):
    torch.manual_seed(0)
    np.random.seed(0)
    patch = (12, 16, 16)
    transforms = nnUNetTrainer.get_training_transforms(patch, (-0.5, 0.5), None, (0, 1, 2), dummy_2d)
    only_dropout = Stage1Config(shuffle_probability=0.0, mask_probability=0.0)
    whole = ComposeTransforms([ModalityCorruptionTransform(only_dropout), transforms])
    for _ in range(50):
        segmentation = torch.randint(0, 3, (1, 18, 22, 22), dtype=torch.int16)
        image = torch.randn(3, 18, 22, 22)
        draw = whole.transforms[0].get_parameters(image=image)
        marked = whole.transforms[0].apply({"image": image}, **draw)["image"]
        result = transforms(image=marked, segmentation=segmentation)["image"]
        # a rotation puts zeros into the corners of a NaN channel too: one NaN voxel is what says "missing"
        nan = torch.isnan(result).flatten(1).any(1)
        assert torch.equal(nan, ~draw["corruption"].available[0])
        assert torch.isfinite(result[~nan]).all()


def test_the_transform_is_part_of_a_composition():
    config = Stage1Config(shuffle_probability=0.0, mask_probability=0.0)
    image = torch.randn(4, 8, 8)
    segmentation = torch.randint(0, 3, (1, 8, 8))
    patterns = set()
    for _ in range(100):
        result = ComposeTransforms([ModalityCorruptionTransform(config)])(image=image, segmentation=segmentation)
        nan = torch.isnan(result["image"]).flatten(1)
        assert torch.equal(nan.any(1), nan.all(1))
        assert torch.equal(result["image"][~nan.any(1)], image[~nan.any(1)])
        assert torch.equal(result["segmentation"], segmentation)
        patterns.add(tuple(nan.any(1).tolist()))
    assert (True,) * 4 not in patterns
    assert len(patterns) > 10


def test_a_batch_is_corrupted_as_its_samples_are():
    x = torch.randn(6, 3, 9, 10)
    draw = draw_corruption(x.shape, Stage1Config(shuffle_probability=0.5, mask_probability=0.5), seeded())
    corrupted, available = draw.apply(x)
    for number in range(6):
        one = Corruption(
            draw.source[number : number + 1], draw.masked_blocks[number : number + 1], draw.block_size,
            draw.available[number : number + 1],
        )  # fmt: skip
        alone, alone_available = one.apply(x[number : number + 1])
        assert torch.equal(alone[0], corrupted[number])
        assert torch.equal(alone_available[0], available[number])


def test_draws_repeat_with_their_generator_and_leave_no_trace_in_the_data():
    config = Stage1Config()
    first, second = (draw_corruption((4, 3, 8, 8, 8), config, seeded(7)) for _ in range(2))
    assert torch.equal(first.source, second.source)
    assert torch.equal(first.masked_blocks, second.masked_blocks)
    assert torch.equal(first.available, second.available)
    x = torch.randn(4, 3, 8, 8, 8)
    before = x.clone()
    assert torch.equal(first.apply(x)[0], second.apply(x)[0])
    assert torch.equal(x, before)


def test_dropout_of_the_corruption_follows_its_configuration():
    config = Stage1Config(subset_sampling="per_modality", dropout_probability=0.1)
    draw = draw_corruption((3000, 6, 4, 4), config, seeded())
    assert draw.available.float().mean().item() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_shuffle_and_masking_happen_with_their_probabilities(probability):
    config = Stage1Config(shuffle_probability=probability, mask_probability=probability, mask_block_size=2)
    draw = draw_corruption((3000, 6, 4, 4), config, seeded())
    masked = draw.masked_blocks.flatten(1).any(1).float().mean().item()
    moved = (draw.source != torch.arange(6)).any(1).float().mean().item()
    assert masked == pytest.approx(probability, abs=0.04)
    # one permutation of 720 is the identity
    assert moved == pytest.approx(probability * 719 / 720, abs=0.04)


def test_every_block_is_masked_equally_often():
    draw = draw_corruption((3000, 1, 8, 8), Stage1Config(mask_ratio=0.25, mask_block_size=2), seeded())
    shares = draw.masked_blocks.float().mean((0, 1))
    assert shares.shape == (4, 4)
    assert shares.sub(0.25).abs().max() < 0.05


def test_a_case_that_lacks_what_was_drawn_keeps_what_it_has():
    draw = Corruption(
        torch.tensor([[1, 0]]), torch.zeros(1, 2, 1, 1, dtype=torch.bool), (4, 4), torch.tensor([[True, False]])
    )
    x = torch.ones(1, 2, 4, 4)
    x[:, 1] = math.nan
    corrupted, available = draw.apply(x)
    assert available.tolist() == [[False, True]]
    assert torch.equal(corrupted[0, 1], x[0, 0])


def test_incomplete_subsets_cannot_be_drawn_without_dropout():
    never = SubsetSamplingConfig(subset_sampling="per_modality", dropout_probability=0.0)
    assert draw_subsets(10, 3, never).all()
    with pytest.raises(ValueError, match="no incomplete subset"):
        draw_subsets(10, 3, never, complete_allowed=False)


def test_decks_of_ten_modalities_are_listed_and_of_eleven_are_not():
    assert len(set(map(tuple, SubsetDeck(10, 0).deal(1022).tolist()))) == 1022
    assert len(set(map(tuple, SubsetDeck(11, 0).deal(2046).tolist()))) < 2046
    assert torch.equal(SubsetDeck(4, 3).deal(20), SubsetDeck(4, 3).deal(20))


PATCHES = {"3d": ((12, 16, 16), False), "dummy 2d": ((6, 16, 16), True), "2d": ((16, 20), False)}


@pytest.mark.parametrize("outside", [False, True], ids=["patch with tissue", "patch outside the mask"])
@pytest.mark.parametrize("kind", PATCHES)
def test_a_missing_channel_stays_nan_and_leaves_the_others_alone(kind, outside):
    patch, dummy_2d = PATCHES[kind]
    axes = tuple(range(len(patch)))
    augmentation = UniMRSegStage2Trainer.get_training_transforms(
        patch, (-0.5, 0.5), None, axes, dummy_2d, use_mask_for_norm=[True] * 3
    )
    always = [entry for entry in augmentation.transform.transforms if isinstance(entry, RandomTransform)]
    assert len(always) == 7
    for entry in always:
        entry.apply_probability = 1
        entry.transform.p_per_channel = 1
    for entry in augmentation.transform.transforms:
        if isinstance(entry, SpatialTransform):
            entry.p_rotation = entry.p_scaling = 1
    size = [edge + (0 if dummy_2d and axis == 0 else 6) for axis, edge in enumerate(patch)]
    for seed in range(8):
        complete = torch.randn(3, *size, generator=seeded(seed))
        incomplete = complete.clone()
        incomplete[1] = math.nan
        segmentation = torch.randint(-1, 3, (1, *size), generator=seeded(seed), dtype=torch.int16)
        segmentation = torch.full_like(segmentation, -1) if outside else segmentation
        results = []
        for image in (complete, incomplete):
            torch.manual_seed(seed)
            np.random.seed(seed)
            results.append(augmentation(image=image.clone(), segmentation=segmentation.clone()))
        expected, found = (result["image"] for result in results)
        assert torch.isnan(found[1]).all()
        assert torch.isfinite(found[[0, 2]]).all()
        assert torch.equal(found[[0, 2]], expected[[0, 2]])
        assert found[[0, 2]].any() != outside
        assert torch.equal(*(result["segmentation"] for result in results))
        assert torch.isnan(incomplete[1]).all()


def test_label_channels_of_a_cascade_are_appended_behind_a_missing_channel():
    augmentation = UniMRSegStage2Trainer.get_training_transforms(
        (8, 8, 8), (0, 0), None, (), False, is_cascaded=True, foreground_labels=[1, 2]
    )
    image = torch.randn(2, 8, 8, 8)
    image[1] = math.nan
    found = augmentation(image=image, segmentation=torch.ones(2, 8, 8, 8, dtype=torch.int16))["image"]
    assert torch.isnan(found).flatten(1).all(1).tolist() == [False, True, False, False]
    assert torch.isfinite(found[[0, 2, 3]]).all()
