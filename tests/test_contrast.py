"""Stage 2's contrast and retrieval against independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnunetv2_unimrseg.method.contrast import (
    NegativesMemory,
    multi_stage_nt_xent,
    nt_xent,
    pooled_statistics,
    retrieval,
    standardise,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def test_statistics_are_mean_and_deviation_of_each_channel():
    x = torch.randn(2, 3, 4, 5, 6) * 7 + 3
    expected = np.concatenate([x.numpy().mean((2, 3, 4)), x.numpy().std((2, 3, 4))], 1)
    np.testing.assert_allclose(pooled_statistics(x.bfloat16().float()).numpy(), expected, rtol=0.02)
    assert pooled_statistics(x.bfloat16()).dtype == torch.float32


def by_hand(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    array = reference.double().numpy()
    spread = array.std(0) + 0.01 * np.abs(array).mean(0)
    return torch.from_numpy((features.double().numpy() - array.mean(0)) / spread).float()


def test_standardised_features_do_not_depend_on_what_all_share_or_on_units():
    features = torch.randn(5, 3)
    expected = by_hand(features, features)
    torch.testing.assert_close(standardise(features, features), expected)
    other_units = features * torch.tensor([1e3, 1.0, 1e-3])
    torch.testing.assert_close(standardise(other_units, other_units), expected, rtol=1e-3, atol=1e-3)
    shifted = standardise(features + 5, features + 5)
    assert torch.cosine_similarity(shifted.flatten(), expected.flatten(), dim=0) > 0.999
    assert torch.isfinite(standardise(torch.ones(2, 3), torch.ones(2, 3))).all()


def found_by_loops(first: torch.Tensor, second: torch.Tensor, patients: list[int]) -> tuple[float, float]:
    views = [by_hand(view, torch.cat((first, second))) for view in (first, second)]
    hits, chances = [], []
    for one, other in (views, views[::-1]):
        for sample, patient in enumerate(patients):
            rivals = [number for number, owner in enumerate(patients) if owner != patient]
            if rivals:
                scores = {k: float(F.cosine_similarity(one[sample], other[k], dim=0)) for k in [sample, *rivals]}
                hits.append(max(scores, key=lambda k: scores[k]) == sample)
                chances.append(1 / len(scores))
    return (float(np.mean(hits)), float(np.mean(chances))) if hits else (math.nan, math.nan)


@pytest.mark.parametrize("patients", [[0, 1], [0, 0, 1], [3, 1, 3, 2, 1], list(range(12)), [4, 4]])
def test_retrieval_against_loops(patients):
    for noise in (0.1, 1.0, 5.0):
        first = torch.randn(len(patients), 6)
        second = first + noise * torch.randn_like(first)
        given = retrieval(first, second, torch.tensor(patients))
        assert given == pytest.approx(found_by_loops(first, second, patients), nan_ok=True)


def test_equal_views_are_always_found():
    first = torch.randn(8, 6)
    assert retrieval(first, first.clone(), torch.arange(8)) == (1.0, pytest.approx(1 / 8))


def double_loop(
    first: torch.Tensor,
    second: torch.Tensor,
    patients: list[int],
    temperature: float,
    past: torch.Tensor | tuple = (),
    past_patients: tuple[int, ...] = (),
) -> float:
    views = [*first.double(), *second.double(), *(feature.double() for feature in past)]
    owners = [*patients * 2, *past_patients]
    count = len(patients)

    def similarity(a: int, b: int) -> float:
        return float(views[a] @ views[b] / views[a].norm() / views[b].norm()) / temperature

    losses = []
    for anchor in range(2 * count):
        positive = (anchor + count) % (2 * count)
        denominator = math.exp(similarity(anchor, positive))
        for other in range(len(views)):
            if owners[other] != owners[anchor]:
                denominator += math.exp(similarity(anchor, other))
        losses.append(-similarity(anchor, positive) + math.log(denominator))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("patients", [[0], [0, 1], [0, 0, 1], [3, 1, 3, 2, 1], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_against_a_double_loop(patients, temperature):
    first, second = torch.randn(len(patients), 6), torch.randn(len(patients), 6)
    ours = nt_xent(first, second, torch.tensor(patients), temperature)
    assert ours.item() == pytest.approx(double_loop(first, second, patients, temperature), abs=1e-5)


def test_nt_xent_without_negatives_is_zero_with_finite_gradients():
    first, second = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    loss = nt_xent(first, second, torch.tensor([7, 7, 7]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(first.grad, torch.zeros_like(first))


def test_nt_xent_has_gradients_into_both_views():
    first, second = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    nt_xent(first, second, torch.arange(3)).backward()
    assert (first.grad.abs().sum(1) > 0).all()
    assert (second.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("patients", [[0], [0, 1], [0, 0, 1], [3, 1, 3, 2, 1]])
@pytest.mark.parametrize("past_patients", [(0,), (4,), (0, 1, 1, 5, 3, 5), (7, 8, 9, 7)])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_with_past_negatives_against_a_double_loop(patients, past_patients, temperature):
    first, second, past = (torch.randn(count, 6) for count in (len(patients), len(patients), len(past_patients)))
    ours = nt_xent(first, second, torch.tensor(patients), temperature, (past, torch.tensor(past_patients)))
    expected = double_loop(first, second, patients, temperature, past, past_patients)
    assert ours.item() == pytest.approx(expected, abs=1e-5)


def test_past_features_are_negatives_of_other_patients_alone_and_get_no_gradient():
    first, second = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4, requires_grad=True)
    past = torch.randn(3, 4, requires_grad=True)
    one_patient = torch.tensor([5])
    alone = nt_xent(first, second, one_patient, past=(past, torch.tensor([5, 5, 5])))
    alone.backward()
    assert alone.item() == 0
    assert not first.grad.any() and not second.grad.any()
    mixed = nt_xent(first, second, one_patient, past=(past, torch.tensor([5, 2, 5])))
    mixed.backward()
    torch.testing.assert_close(mixed, nt_xent(first, second, one_patient, 0.5, (past[1:2], torch.tensor([2]))))
    assert mixed > 0
    assert first.grad.any() and second.grad.any()
    assert past.grad is None


def test_the_memory_is_first_in_first_out_with_the_patients_of_its_features():
    memory = NegativesMemory(5)
    kept = []
    for values, patients in (((1.0, 2.0), (10, 11)), ((3.0, 4.0), (11, 12)), ((5.0, 6.0), (12, 10))):
        widths = (2, 3)
        column = torch.tensor(values)[:, None]
        memory.add([column.expand(2, width) for width in widths], torch.tensor(patients))
        kept = [*kept, *zip(values, patients, strict=True)][-5:]
        assert [tuple(stage.shape) for stage in memory.features] == [(len(kept), width) for width in widths]
        for stage in memory.features:
            assert stage[:, 0].tolist() == stage[:, -1].tolist() == [value for value, _ in kept]
        assert memory.patients.tolist() == [patient for _, patient in kept]
    assert [value for value, _ in kept] == [2, 3, 4, 5, 6]


def test_a_batch_larger_than_the_memory_leaves_its_last_features():
    memory = NegativesMemory(3)
    memory.add([torch.arange(8.0)[:, None]], torch.arange(8))
    assert memory.features[0][:, 0].tolist() == [5, 6, 7]
    assert memory.patients.tolist() == [5, 6, 7]


def test_the_memory_keeps_detached_copies():
    memory = NegativesMemory(8)
    features = torch.ones(2, 3, requires_grad=True)
    memory.add([features], torch.tensor([0, 1]))
    assert not memory.features[0].requires_grad
    with torch.no_grad():
        features.fill_(9)
    assert memory.features[0].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize("size", [0, 4])
def test_contrast_over_stages_with_a_memory(size):
    memory, stages = NegativesMemory(size), [3, 5]
    patients, past_patients = torch.tensor([0, 1]), torch.tensor([1, 2])
    past_views = [torch.randn(2, width) for width in stages]
    memory.add(past_views, past_patients)
    first, second = ([torch.randn(2, width) for width in stages] for _ in range(2))
    terms = []
    for stage in range(2):
        past = past_views[stage] if size else torch.empty(0, stages[stage])
        every = torch.cat((first[stage], second[stage], past))
        views = by_hand(every, every).split((2, 2, len(past)))
        terms.append(double_loop(*views[:2], [0, 1], 0.3, views[2] if size else (), (1, 2) if size else ()))
    ours = multi_stage_nt_xent(first, second, patients, 0.3, memory)
    assert ours.item() == pytest.approx(sum(terms) / 2, abs=1e-5)
    without = multi_stage_nt_xent(first, second, patients, 0.3)
    assert (ours.item() == without.item()) == (size == 0)
    assert len(memory.patients) == (2 if size else 0)
