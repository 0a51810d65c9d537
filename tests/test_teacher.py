"""Stage 2's moving-average teacher of unlabelled samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import images, trained_network
from test_unlabelled_training import SUBSETS, make
from training_steps import labels

from nnunetv2_unimrseg.method.losses import certainty, prediction_consistency
from nnunetv2_unimrseg.trainers.teacher import AverageTeacher


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_teacher_is_the_moving_average_of_the_weights(decay):
    network = trained_network("stage2")
    teacher = AverageTeacher(network, decay)
    expected = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for _ in range(3):
        for name, parameter in network.named_parameters():
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter))
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
        teacher.follow(network)
    for name, parameter in teacher.network.named_parameters():
        assert not parameter.requires_grad
        torch.testing.assert_close(parameter, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_teacher_sees_all_that_a_sample_has():
    network = trained_network("stage2")
    data = images()
    data[1, 2] = math.nan
    advice = AverageTeacher(network, 0.5).predict(data)
    network.decoder.deep_supervision = False
    with torch.no_grad():
        torch.testing.assert_close(advice, network.eval()(data))
    assert not advice.requires_grad


@pytest.mark.parametrize("kind", ["classes", "regions"])
@pytest.mark.parametrize("keys", [["labelled", "unlabelled"], ["other", "unlabelled"]])
def test_unlabelled_incomplete_views_are_held_against_the_teacher(kind, keys):
    made, network = make("stage 2, one view", kind, teacher_weight=0.7)
    data, target = images(), [labels(kind), labels(kind)[..., ::2, ::2, ::2]]
    teacher = AverageTeacher(network, 0.99)
    for parameter in teacher.network.parameters():
        parameter.mul_(1.1)
    made.teacher = teacher
    logits = network(data, SUBSETS[0])
    supervised = made.supervised_loss(logits, target, made.labelled_samples({"keys": keys}))
    taught = [number for number, key in enumerate(keys) if key != "labelled"]
    advice = teacher.predict(data[taught])
    regions = kind == "regions"
    distance = prediction_consistency(
        logits[0][taught], advice, regions=regions, weight=certainty(advice, regions=regions)
    )
    found = made.compute_loss(data, target, {"keys": keys})
    torch.testing.assert_close(found, supervised + 0.7 * len(taught) / 2 * distance)
    assert distance > 0


def test_the_teacher_is_not_asked_before_its_time_nor_for_complete_views():
    made, _ = make("stage 2, one view", teacher_weight=0.7, pairs_every=100)
    data, target = images(), [labels("classes"), labels("classes")[..., ::2, ::2, ::2]]
    given = {"keys": ["labelled", "unlabelled"]}
    made.num_epochs, made.current_epoch = 10, 2
    made.compute_loss(data, target, given)
    assert made.teacher is None
    made.current_epoch = 3
    made._draw_one_view = lambda count: torch.ones(count, 4, dtype=torch.bool)
    made.compute_loss(data, target, given)
    assert made.teacher is None
    made._draw_one_view = lambda count: SUBSETS[0][:count]
    made.compute_loss(data, target, given)
    assert made.teacher is not None


@pytest.mark.parametrize("regions", [False, True])
def test_certainty_is_one_where_the_teacher_is_sure_and_zero_where_it_guesses(regions):
    sure = torch.tensor([50.0, -50.0, -50.0]).view(1, 3, 1, 1, 1)
    assert certainty(sure, regions=regions).item() == pytest.approx(1)
    assert certainty(torch.zeros(1, 3, 1, 1, 1), regions=regions).item() == pytest.approx(0, abs=1e-6)
    logits = torch.randn(1, 3, 2, 2, 2)
    q = (logits.double().sigmoid() if regions else logits.double().softmax(1)).numpy()
    if regions:
        expected = 1 + (q * np.log2(q) + (1 - q) * np.log2(1 - q)).mean(1)
    else:
        expected = 1 + (q * np.log2(q)).sum(1) / np.log2(3)
    np.testing.assert_allclose(certainty(logits, regions=regions).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("regions", [False, True])
def test_voxels_without_weight_do_not_count(regions):
    teacher, student = torch.randn(1, 3, 4, 4, 4), torch.randn(1, 3, 4, 4, 4)
    weight = torch.zeros(1, 4, 4, 4)
    weight[..., :2] = 1
    changed = student.clone()
    changed[..., 2:] += 5
    values = [prediction_consistency(one, teacher, regions=regions, weight=weight) for one in (student, changed)]
    assert values[0] == values[1] > 0
    with_ones = prediction_consistency(student, teacher, regions=regions, weight=torch.ones(1, 4, 4, 4))
    torch.testing.assert_close(with_ones, prediction_consistency(student, teacher, regions=regions))
