"""A trained nnU-Net that keeps what it says of complete input, whatever is learned beside it."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from networks import images, retrofit_unet, stock_unet
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn
from training_steps import labels, segmentation_loss, stub

from nnunetv2_unimrseg.config import RetrofitConfig
from nnunetv2_unimrseg.data.case_table import TrainingCase
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.method.losses import Float32Loss, feature_consistency, prediction_consistency
from nnunetv2_unimrseg.method.networks.retrofit import RetrofitUNet
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.trainers.retrofit import UniMRSegRetrofitTrainer
from nnunetv2_unimrseg.trainers.segmentation import mark_missing

KINDS = pytest.mark.parametrize(
    ("kind", "dims", "norm"),
    [
        ("plain", 3, None),
        ("residual", 3, None),
        ("plain", 2, None),
        ("residual", 2, None),
        ("plain", 3, nn.BatchNorm3d),
    ],
)
INCOMPLETE = torch.tensor([[True, False, True, False], [False, True, True, True]])
CONFIGURATION = "3d_fullres"


def with_missing(dims: int = 3) -> torch.Tensor:
    """A batch whose first sample is complete and whose second lacks the third modality."""
    x = images(dims)
    x[1, 2] = math.nan
    return x


def learn(network: RetrofitUNet, steps: int = 3, dims: int = 3) -> dict[str, torch.Tensor]:
    """Train on incomplete views; return the weights before."""
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(
        [parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.1, weight_decay=0.1
    )
    for _ in range(steps):
        network.train()
        optimizer.zero_grad()
        logits = network(images(dims), INCOMPLETE)
        sum(scale.square().mean() for scale in (logits if isinstance(logits, list) else [logits])).backward()
        optimizer.step()
    return before


@KINDS
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_logits_of_complete_input_are_the_trained_networks_bit_for_bit(kind, dims, norm, deep_supervision):
    torch.manual_seed(0)
    stock = stock_unet(kind, dims, norm=norm, deep_supervision=deep_supervision)
    network = RetrofitUNet(copy.deepcopy(stock), 4)
    before = learn(network, dims=dims)
    after = network.state_dict()
    learned = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key.split(".")[0] for key in learned} == {"adapters", "incomplete_decoder"}
    assert stock.state_dict().keys() == {key for key in after if key.startswith(("encoder.", "decoder."))}
    stock.eval()
    with torch.no_grad():
        expected = stock(images(dims))
        for mode in (False, True):
            found = network.train(mode)(images(dims))
            scales = zip(found, expected, strict=True) if deep_supervision else [(found, expected)]
            assert all(torch.equal(ours, theirs) for ours, theirs in scales)


@KINDS
def test_each_sample_of_a_mixed_batch_passes_its_own_path(kind, dims, norm):
    network = retrofit_unet(kind, dims, norm=norm)
    learn(network, dims=dims)
    network.eval()
    x = with_missing(dims)
    with torch.no_grad():
        together, plain = network(x), network(x, skip_adapters=True)
        alone = network(torch.cat((x[1:], x[1:])))
        known = network(torch.cat((x[1:], x[1:])), all_incomplete=True)
    assert torch.equal(together[0], plain[0])
    assert torch.equal(alone, known)
    torch.testing.assert_close(together[1], alone[0])
    assert not torch.allclose(together[1], plain[1])


def test_only_incomplete_samples_reach_the_gradients_of_what_learns():
    network = retrofit_unet().double()  # in float32 the rounding of another batch size is not small
    gradients = []
    for complete in (images()[0], 100 * images()[1], None):
        network.zero_grad()
        x = with_missing()
        logits = network((x[1:] if complete is None else torch.stack((complete, x[1]))).double())
        logits.square().sum().backward()
        gradients.append({name: p.grad for name, p in network.named_parameters() if p.grad is not None})
    assert {name.split(".")[0] for name in gradients[0]} == {"adapters", "incomplete_decoder"}
    for name, gradient in gradients[0].items():
        for other in gradients[1:]:
            torch.testing.assert_close(other[name], gradient, msg=name)
    assert all(gradient.any() for name, gradient in gradients[0].items() if name.startswith("incomplete_decoder.seg"))
    network.zero_grad()
    network(images().double()).square().sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in network.parameters())


def test_the_adapters_start_as_the_identity_and_all_of_them_learns_after_a_step():
    network = retrofit_unet()
    with torch.no_grad():
        _, adapted = network(images(), INCOMPLETE, return_features=True)
        _, plain = network(images(), INCOMPLETE, skip_adapters=True, return_features=True)
    assert all(map(torch.equal, adapted, plain))
    learn(network, steps=1)
    network.zero_grad()
    network(images(), INCOMPLETE).square().mean().backward()
    for name, parameter in network.adapters.named_parameters():
        # a bias before a normalisation has no effect, nor has a key's bias inside a softmax
        if not name.endswith("bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_what_is_frozen_stays_in_evaluation():
    network = retrofit_unet(norm=nn.BatchNorm3d).train()
    assert not any(module.training for part in (network.encoder, network.decoder) for module in part.modules())
    assert all(module.training for part in (network.adapters, network.incomplete_decoder) for module in part.modules())
    assert not any(p.requires_grad for part in (network.encoder, network.decoder) for p in part.parameters())


def test_compiles_into_one_graph():
    network = retrofit_unet().eval()
    learn(network)
    network.eval()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), network(images()))
        torch.testing.assert_close(compiled(with_missing()), network(with_missing()))
        torch.testing.assert_close(
            compiled(images(), INCOMPLETE, all_incomplete=True), network(images(), INCOMPLETE, all_incomplete=True)
        )


@pytest.mark.parametrize("kind", ["classes", "regions"])
@pytest.mark.parametrize("own_set", [False, True])
def test_loss_is_the_mean_over_students_of_what_the_complete_case_teaches(kind, own_set):
    classes = 3
    network = retrofit_unet(deep_supervision=True, classes=classes)
    learn(network)
    table = {"without_c": TrainingCase(("a", "b", "d"), labelled=True)} if own_set else {}
    settings = RetrofitConfig(feature_weight=0.5, prediction_weight=2.0, incomplete_label_weight=0.3)
    made = stub(UniMRSegRetrofitTrainer, network, kind, settings, table)
    made.loss = DeepSupervisionWrapper(segmentation_loss(kind), (1.0, 0.5))
    subsets = [INCOMPLETE, INCOMPLETE.flip(0)]
    made._deal_subsets = lambda _: subsets
    data = with_missing() if own_set else images()
    target = [labels(kind), labels(kind)[..., ::2, ::2, ::2]]
    with torch.no_grad():
        teacher, teacher_features = network(data, return_features=True)
    expected = torch.zeros(())
    for subset in subsets:
        logits, features = network(data, subset, return_features=True)
        # the second sample of the second subset, a and c of a case without c, is a alone: it too sees less
        alike = feature_consistency(features, teacher_features)
        distance = prediction_consistency(logits[0], teacher[0], regions=kind == "regions")
        expected = expected + (0.5 * alike + 2.0 * distance + 0.3 * made.loss(logits, target)) / 2
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(expected, learning)
    network.zero_grad()
    loss = made.compute_loss(data, target, {"keys": ["complete", "without_c" if own_set else "other"]})
    made.backward(loss)
    torch.testing.assert_close(loss.detach(), expected.detach())
    for parameter, gradient in zip(learning, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_teacher_that_learns_leaves_the_students_their_gradients_under_autocast():
    network = retrofit_unet(deep_supervision=True)
    learn(network)
    network.zero_grad()
    table = {"without_c": TrainingCase(("a", "b", "d"), labelled=True)}
    made = stub(UniMRSegRetrofitTrainer, network, "classes", RetrofitConfig(), table)
    made.loss = DeepSupervisionWrapper(Float32Loss(segmentation_loss("classes")), (1.0, 0.5))
    target = [labels("classes"), labels("classes")[..., ::2, ::2, ::2]]
    with torch.autocast("cpu", torch.bfloat16):
        loss = made.compute_loss(with_missing(), target, {"keys": ["complete", "without_c"]})
    made.backward(loss)
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) is parameter.requires_grad, name
        if parameter.requires_grad and not name.endswith("bias") and not name.endswith("scale"):
            assert parameter.grad.any(), name


@pytest.fixture
def results(folders: Path) -> Path:
    """nnU-Net's folders, with a preprocessed case only by name."""
    cases = folders.parent / "preprocessed" / "Dataset998_Tiny" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (cases / "case.b2nd").touch()
    torch.manual_seed(0)
    return folders


def save(path: Path, trainer: str = "nnUNetTrainer", axes: tuple[int, ...] | None = (0, 1), **init: object) -> Path:
    """Write a checkpoint of the tiny plans' stock network."""
    plans = PlansManager(tiny.plans())
    network = UniMRSegRetrofitTrainer.build_network_architecture(plans, plans.get_configuration(CONFIGURATION), 4, 3)
    weights = {key: w for key, w in network.state_dict().items() if key.startswith(("encoder.", "decoder."))}
    torch.save({
        "network_weights": weights, "trainer_name": trainer, "inference_allowed_mirroring_axes": axes,
        "init_args": {
            "plans": tiny.plans(), "configuration": CONFIGURATION, "dataset_json": tiny.dataset_json(),
            "fold": 0, **init,
        },
    }, path)  # fmt: skip
    return path


def make(start: Path | str = "", **settings: object) -> UniMRSegRetrofitTrainer:
    made = tiny.trainer(UniMRSegRetrofitTrainer, start_from=str(start), cpu_precision="float32", **settings)
    made.initialize()
    return made


@pytest.mark.parametrize("axes", [(0, 1), (), None])
def test_weights_and_axes_of_mirroring_are_the_trained_networks(results, tmp_path, axes):
    made = make(save(tmp_path / "stock.pth", axes=axes))
    stock = made.take_initial_weights(made.initial_checkpoint())["network_weights"]
    state = made.network.state_dict()
    for key, weights in stock.items():
        assert torch.equal(state[key], weights), key
        if key.startswith("decoder.") and not key.startswith("decoder.encoder."):
            assert torch.equal(state[f"incomplete_{key}"], weights), key
    for _ in range(2):
        *_, mirrored = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        assert mirrored == made.inference_allowed_mirroring_axes == axes


def test_deep_supervision_is_that_of_both_decoders(results):
    made = make()
    for enabled in (False, True):
        made.set_deep_supervision_enabled(enabled)
        assert isinstance(made.network(images()), list) is enabled
        assert isinstance(made.network(images(), INCOMPLETE), list) is enabled


@pytest.mark.parametrize("start_from", ["", "scratch"])
def test_a_missing_start_is_one_error_with_the_command(results, start_from):
    with pytest.raises(UserError) as error:
        make(start_from).initial_checkpoint()
    command = "unimrseg train 998 3d_fullres 0 -p nnUNetPlans --from-checkpoint PATH --keep-complete"
    assert command in str(error.value)


def test_a_start_that_does_not_exist_is_named(results, tmp_path):
    with pytest.raises(UserError, match=r"retrofit\.start_from names .*fold_0\.pth, which does not exist") as error:
        make(tmp_path / "fold_{fold}.pth").initial_checkpoint()
    assert "stage before" not in str(error.value)


def with_changes(change: str) -> dict[str, object]:
    plans, dataset = tiny.plans(), tiny.dataset_json()
    configuration = plans["configurations"][CONFIGURATION]
    if change == "features":
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 16]
    elif change == "intensities":
        plans["foreground_intensity_properties_per_channel"]["0"]["mean"] = 41.0
    elif change == "transposed":
        plans["transpose_forward"] = [0, 1, 2]
    elif change == "mask":
        configuration["use_mask_for_norm"] = [False] * 4
    elif change == "channels":
        dataset["channel_names"] = {"0": "CT", "1": "T1", "2": "PET", "3": "T2"}
    else:
        dataset["labels"] = {"background": 0, "core": 1, "whole": 2}
    return {"plans": plans, "dataset_json": dataset}


CHANGES = {
    "features": "features_per_stage: [4, 16] in the checkpoint, [4, 8] in the plans",
    "intensities": "mean: 41.0 in the checkpoint, 40.0 in the plans",
    "transposed": "transpose_forward: [0, 1, 2] in the checkpoint, [1, 0, 2] in the plans",
    "mask": "use_mask_for_norm: [False, False, False, False] in the checkpoint",
    "channels": "channel_names: ",
    "labels": "labels: ",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_of_other_plans_or_data_is_refused_with_what_differs(results, tmp_path, change):
    made = make(path := save(tmp_path / "other.pth", **with_changes(change)))
    with pytest.raises(UserError) as error:
        made.take_initial_weights(path)
    assert f"The checkpoint {path} does not fit these plans" in str(error.value)
    assert CHANGES[change] in str(error.value)


def test_a_stage_1_checkpoint_is_refused(results, tmp_path):
    made = make(path := save(tmp_path / "stage1.pth", TRAINER_OF_SECTION["stage1"]))
    with pytest.raises(UserError, match="stage-1 model: it reconstructs images and cannot segment"):
        made.take_initial_weights(path)


def test_a_training_goes_on_as_it_was(results, tmp_path):
    made = make(save(tmp_path / "stock.pth", axes=None))
    made.take_initial_weights(made.initial_checkpoint())
    learn(made.network)
    made.save_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    resumed = make("")
    resumed.load_checkpoint(str(tmp_path / "checkpoint_latest.pth"))
    state = resumed.network.state_dict()
    assert all(torch.equal(state[key], weights) for key, weights in made.network.state_dict().items())
    assert resumed.weights_were_loaded
    *_, mirrored = resumed.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert mirrored is None


def batch() -> dict[str, object]:
    target = torch.randint(0, 3, (2, 1, 16, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    return {"data": images(), "target": [target, target[..., ::2, ::2, ::2]], "keys": ["one", "other"]}


def test_the_gap_closed_is_logged_for_each_encoder_stage(results, tmp_path, monkeypatch):
    made = make(save(tmp_path / "stock.pth"))
    made.loss = DeepSupervisionWrapper(segmentation_loss("classes"), (1.0,))
    learn(made.network)
    made.network.eval()
    made.on_validation_epoch_start()
    subsets = [made.gap_deck.deal(2), made.gap_deck.deal(2)]
    lines: list[str] = []
    monkeypatch.setattr(made, "print_to_log_file", lambda *words: lines.append(" ".join(map(str, words))))
    made.on_validation_epoch_start()
    made.set_deep_supervision_enabled(True)
    given = [batch(), batch()]
    given[1]["data"][1, 2] = math.nan  # a case that lacks a modality has no complete view
    for one in given:
        one["target"] = one["target"][:1]
    wholes = [given[0]["data"].clone(), given[1]["data"][:1].clone()]
    with torch.no_grad():
        outputs = [made.validation_step(one) for one in given]
        distances = []
        for whole, subset in zip(wholes, subsets, strict=True):
            incomplete = mark_missing(whole, subset[: len(whole)])
            views = [
                made.network(x, skip_adapters=skip, return_features=True)[1]
                for x, skip in ((whole, True), (incomplete, False), (incomplete, True))
            ]
            distances.append([[(a - c).abs().mean(), (b - c).abs().mean()] for c, a, b in zip(*views, strict=True)])
    made.on_validation_epoch_end(outputs)
    adapted, plain = np.sum(np.array(distances, dtype=float), axis=0).T
    expected = 1 - adapted / plain
    assert expected[0] == 0
    assert expected[1] != 0
    (line,) = (line for line in lines if line.startswith("Gap closed in each encoder stage"))
    assert line.endswith(str(np.round(expected, 4).tolist()))
    assert made.logger.get_value("gap_closed", step=0) == pytest.approx(expected[1:].mean(), rel=1e-4)
