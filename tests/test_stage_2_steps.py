"""Stage 2's steps: two views and their contrast, or the control's step."""

from __future__ import annotations

import copy

import pytest
import torch
from test_trainer_steps import SUBSETS, batch, changed, folders, make, weights  # noqa: F401

from nnunetv2_unimrseg.method.contrast import NegativesMemory, multi_stage_nt_xent
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer


@pytest.mark.parametrize("sampling", ["uniform", "by_size", "per_modality"])
def test_without_contrast_and_pairs_stage_2_is_the_control_step_for_step(sampling):
    networks = []
    for trainer, settings in (
        (UniMRSegModalityDropoutTrainer, {"dropout_probability": 0.2}),
        (UniMRSegStage2Trainer, {"pairs_every": 100, "contrastive_weight": 0.0, "final_lr": 0.0}),
    ):
        torch.manual_seed(7)
        made = make(trainer, subset_sampling=sampling, seed=3, num_epochs=10, **settings)
        for epoch in range(2):
            made.current_epoch = epoch
            made.on_epoch_start()
            made.on_train_epoch_start()
            for _ in range(3):
                made.train_step(batch())
        networks.append(weights(made.network))
    assert not changed(*networks)


@pytest.mark.parametrize("same_patient", [False, True])
def test_loss_of_stage_2_is_segmentation_of_both_views_and_contrast(monkeypatch, same_patient):
    made = make(UniMRSegStage2Trainer, second_view="network", contrastive_weight=0.7, temperature=0.3)
    monkeypatch.setattr(made, "_draw_views", lambda _: SUBSETS)
    monkeypatch.setattr(made, "_samples_of_pairs", lambda _: slice(None))
    given = batch()
    given["keys"] = ["patient_1", "patient_1" if same_patient else "patient_2"]
    supervised, pooled = [], []
    for subset in SUBSETS:
        logits, statistics = made.network(given["data"], subset, return_statistics=True)
        supervised.append(made.loss(logits, given["target"]))
        pooled.append(statistics)
    patients = torch.tensor([0, 0 if same_patient else 1])
    contrast = multi_stage_nt_xent(*pooled, patients, 0.3)
    assert (contrast == 0) == same_patient
    expected = (supervised[0] + supervised[1]) / 2 + 0.7 * contrast
    torch.testing.assert_close(made.compute_loss(given["data"], given["target"], given), expected)


@pytest.mark.parametrize("size", [0, 2, 64])
def test_stage_2_contrasts_with_the_patients_of_past_steps(monkeypatch, size):
    settings = {"contrastive_weight": 0.7, "temperature": 0.3, "negatives_memory": size}
    made = make(UniMRSegStage2Trainer, second_view="network", **settings)
    monkeypatch.setattr(made, "_draw_views", lambda count: [subset[:count] for subset in SUBSETS])
    whole, past, past_patients = batch(), [[], [], []], []
    for step, (patient, sample) in enumerate([("first", 0), ("second", 1), ("first", 1)]):
        data, target = whole["data"][sample : sample + 1], [scale[sample : sample + 1] for scale in whole["target"]]
        supervised, pooled = [], []
        for subset in SUBSETS:
            logits, statistics = made.network(data, subset[:1], return_statistics=True)
            supervised.append(made.loss(logits, target))
            pooled.append([stage.detach() for stage in statistics])
        terms = []
        for first, second, negatives in zip(*pooled, past, strict=True):
            every = torch.cat((first, second, *negatives))
            centre, spread = every.mean(0), every.std(0, correction=0) + 0.01 * every.abs().mean(0)
            first, second, *negatives = ((one - centre) / spread for one in (first, second, *negatives))
            others = [kept for kept, owner in zip(negatives, past_patients, strict=True) if owner != patient]
            for anchor, positive in ((first, second), (second, first)):
                scores = [torch.cosine_similarity(anchor, other) / 0.3 for other in (positive, *others)]
                terms.append(torch.cat(scores).logsumexp(0) - scores[0])
        contrast = torch.cat(terms).mean()
        assert (contrast > 1e-3) == (size > 0 and step > 0)
        expected = (supervised[0] + supervised[1]) / 2 + 0.7 * contrast
        torch.testing.assert_close(made.compute_loss(data, target, {"keys": [patient]}), expected)
        past = [[*kept, new][-size:] if size else [] for kept, new in zip(past, pooled[1], strict=True)]
        past_patients = [*past_patients, patient][-size:] if size else []


@pytest.mark.parametrize(("size", "halves"), [(1, ([0], [0])), (2, ([1], [0])), (3, ([1], [0])), (4, ([1, 3], [0, 2]))])
def test_pairs_are_of_half_of_the_batch_by_turns(size, halves):
    made = make(UniMRSegStage2Trainer, pairs_every=3)
    for turn, expected in enumerate((*halves, *halves), start=1):
        made.steps = 3 * turn
        assert list(range(size))[made._samples_of_pairs(size)] == expected


def test_a_pair_sees_half_of_the_batch_twice(monkeypatch):
    made = make(UniMRSegStage2Trainer, second_view="network", contrastive_weight=0.0)
    monkeypatch.setattr(made, "_draw_views", lambda count: [subset[1 : 1 + count] for subset in SUBSETS])
    given = batch()
    target = [scale[1:] for scale in given["target"]]
    expected = [made.loss(made.network(given["data"][1:], subset[1:]), target) for subset in SUBSETS]
    torch.testing.assert_close(made.compute_loss(given["data"], given["target"], given), sum(expected) / 2)


@pytest.mark.parametrize("same_patient", [False, True])
def test_an_average_sees_the_second_views_and_the_network_learns_from_one(monkeypatch, same_patient):
    made = make(UniMRSegStage2Trainer, contrastive_weight=0.7, temperature=0.3, teacher_decay=0.75, negatives_memory=3)
    first, second = SUBSETS
    monkeypatch.setattr(made, "_draw_one_view", lambda _: first)
    monkeypatch.setattr(made, "_draw_second_view", lambda _: second)
    given = batch()
    given["keys"] = ["patient_1", "patient_1" if same_patient else "patient_2"]
    patients = made.patient_numbers(given)
    average = copy.deepcopy(made.network)
    memory = NegativesMemory(3)
    for _ in range(3):
        logits, statistics = made.network(given["data"], first, return_statistics=True)
        with torch.no_grad():
            keys = average.encoder_statistics(given["data"], second)
        contrast = multi_stage_nt_xent(statistics, keys, patients, 0.3, memory)
        assert (contrast == 0) == same_patient
        memory.add(keys, patients)
        expected = made.loss(logits, given["target"]) + 0.7 * contrast
        loss = made.compute_loss(given["data"], given["target"], given)
        torch.testing.assert_close(loss, expected)
        made.optimizer.zero_grad()
        made._step(loss)
        with torch.no_grad():
            for own, other in zip(average.parameters(), made.network.parameters(), strict=True):
                own.lerp_(other, 0.25)
    assert changed(weights(made.network), weights(average))


def test_the_second_view_completes_or_reduces_the_first_where_the_pair_is_the_papers():
    made = make(UniMRSegStage2Trainer, views="complete_and_incomplete")
    first = torch.tensor([[True] * 4, [True, False, True, True]])
    complete, incomplete = zip(*(made._draw_second_view(first).all(1).tolist() for _ in range(20)), strict=True)
    assert not any(complete)
    assert all(incomplete)
