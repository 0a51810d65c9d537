"""Reading checkpoints and taking their weights over."""

from __future__ import annotations

import copy
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from networks import stock_unet, unet

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.checkpoints import plans_differences, read_checkpoint, transfer_weights
from nnunetv2_unimrseg.nnunet.trained_model import segmentation_checkpoints
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

CONFIGURATION = "3d_fullres"


def save(path: Path, network: torch.nn.Module, trainer: str = "nnUNetTrainer", plans: dict | None = None) -> Path:
    init_args = {"plans": plans or tiny.plans(), "configuration": CONFIGURATION}
    torch.save({"network_weights": network.state_dict(), "trainer_name": trainer, "init_args": init_args}, path)
    return path


def configuration() -> dict:
    return tiny.plans()["configurations"][CONFIGURATION]


def test_absent_truncated_and_foreign_files_are_named(tmp_path):
    whole = save(tmp_path / "checkpoint_final.pth", stock_unet())
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(whole.read_bytes()[:2000])
    foreign = tmp_path / "foreign.pth"
    torch.save({"weights": 1}, foreign)
    text = tmp_path / "text.pth"
    text.write_text("no checkpoint")
    cases = ((tmp_path / "none.pth", "no checkpoint"), (truncated, "cannot be read"), (foreign, "not an nnU-Net"),
             (text, "cannot be read"))  # fmt: skip
    for path, words in cases:
        with pytest.raises(UserError, match=words) as error:
            read_checkpoint(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_stock_checkpoint_serves_stages_2_and_3(tmp_path, adapters):
    stock = stock_unet()
    path = save(tmp_path / "stock.pth", stock)
    network = unet(adapters=adapters)
    before = copy.deepcopy(network.adapters.state_dict()) if adapters else {}
    lines = []
    transfer_weights(network, path, configuration(), lines.append)
    for key, value in stock.state_dict().items():
        assert torch.equal(network.state_dict()[key], value), key
    for key, value in before.items():
        assert torch.equal(network.adapters.state_dict()[key], value), key
    assert str(path) in lines[0]


@pytest.mark.parametrize(
    ("stage1_decoder", "left_out", "words"),
    [(False, "decoder.", "(the encoder)"), (True, "decoder.seg_layers.", "(all but the heads)")],
)
def test_what_of_stage_1_is_left_out(tmp_path, stage1_decoder, left_out, words):
    first = unet(adapters=False, classes=4)
    path = save(tmp_path / "stage1.pth", first, TRAINER_OF_SECTION["stage1"])
    second = unet(adapters=False, classes=3)
    before = copy.deepcopy(second.state_dict())
    lines = []
    transfer_weights(second, path, configuration(), lines.append, stage1_decoder)
    assert words in lines[0]
    after = second.state_dict()
    kept = [key for key in after if key.startswith(left_out) and not key.startswith("decoder.encoder.")]
    assert "decoder.seg_layers.0.weight" in kept
    assert ("decoder.transpconvs.0.weight" in kept) is not stage1_decoder
    for key, value in after.items():
        assert torch.equal(value, before[key] if key in kept else first.state_dict()[key]), key


def test_adapters_of_a_stage_3_checkpoint_are_taken(tmp_path):
    trained = unet()
    for adapter in trained.adapters:
        torch.nn.init.constant_(adapter.scale, 2)
    path = save(tmp_path / "stage3.pth", trained, TRAINER_OF_SECTION["stage3"])
    network = unet()
    transfer_weights(network, path, configuration())
    assert all((adapter.scale == 2).all() for adapter in network.adapters)


def test_other_plans_are_refused_with_what_differs(tmp_path):
    other = tiny.plans(patch_size=(32, 16, 16))
    other["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["features_per_stage"] = [6, 12]
    path = save(tmp_path / "other.pth", stock_unet(features=(8, 16)), plans=other)
    network = unet(adapters=False, channels=5, modalities=5, features=(8, 16))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError) as error:
        transfer_weights(network, path, configuration())
    message = str(error.value)
    assert "patch_size: [32, 16, 16] in the checkpoint, [16, 16, 16] in the plans" in message
    assert "features_per_stage: [6, 12] in the checkpoint, [4, 8] in the plans" in message
    assert "encoder.stages.0.0.convs.0.conv.weight: (8, 4, 3, 3, 3) in the checkpoint" in message
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_equal_plans_do_not_differ():
    checkpoint = {"init_args": {"plans": tiny.plans(), "configuration": CONFIGURATION}}
    assert plans_differences(checkpoint, configuration()) == []


def test_weights_of_a_distributed_training_are_taken(tmp_path):
    stock = stock_unet()
    weights = {f"module.{key}": value for key, value in stock.state_dict().items()}
    path = tmp_path / "ddp.pth"
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer"}, path)
    network = unet(adapters=False)
    transfer_weights(network, path, configuration())
    assert all(torch.equal(network.state_dict()[key], value) for key, value in stock.state_dict().items())


@pytest.mark.parametrize("missing", ["encoder.stages.0.0.convs.0.conv.weight", "decoder.seg_layers.0.bias"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path, missing):
    weights = stock_unet().state_dict()
    del weights[missing]
    path = tmp_path / "partial.pth"
    torch.save({"network_weights": weights, "trainer_name": "nnUNetTrainer"}, path)
    with pytest.raises(UserError, match=f"{missing}: not in the checkpoint"):
        transfer_weights(unet(adapters=False), path, configuration())


class Payload:
    """What runs code when it is unpickled: it makes a folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_named_before_it_can_run(tmp_path, recwarn):
    path, folder = tmp_path / "checkpoint_final.pth", tmp_path / "made by the payload"
    log = {"train_losses": [np.float64(0.5), np.float32(1)], "dice": np.zeros(3), "number": np.int64(1)}
    torch.save({"network_weights": {}, "logging": log, "_best_ema": np.float64(0.1)}, path)
    read = read_checkpoint(path)
    assert read["logging"]["train_losses"] == log["train_losses"] and read["_best_ema"] == 0.1
    assert len(recwarn) == 0
    torch.save({"network_weights": {}, "logging": Payload(str(folder))}, path)
    with pytest.warns(UserWarning, match=r"objects of posix\.mkdir, so reading it can run code"):
        read_checkpoint(path)
    folder.rmdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="so reading it can run code"):
            read_checkpoint(path)
    assert not folder.exists()


def test_an_empty_file_and_a_folder_are_named(tmp_path):
    empty = tmp_path / "empty.pth"
    empty.touch()
    with pytest.raises(UserError, match=r"empty\.pth cannot be read"):
        read_checkpoint(empty)
    with pytest.raises(UserError, match="There is no checkpoint"):
        read_checkpoint(tmp_path)


def test_kernels_strides_spacing_and_normalisation_are_compared():
    other = tiny.plans(spacing=(1.0, 2.5, 2.5), normalisers=("ZScoreNormalization",) * 4)
    arch = other["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    arch["strides"] = [[1, 1, 1], [1, 2, 2]]
    arch["kernel_sizes"] = [[1, 3, 3], [3, 3, 3]]
    checkpoint = {"init_args": {"plans": other, "configuration": CONFIGURATION}}
    named = {line.split(":")[0].split(".")[-1] for line in plans_differences(checkpoint, configuration())}
    named = {name.split()[-1] for name in named}
    assert named == {"spacing", "normalization_schemes", "strides", "kernel_sizes"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("adapters", False),
        ("adapter_first_stage", 0),
        ("adapter_window", 3),
        ("adapters_know_modalities", False),
        ("reverse_attention", False),
    ],
)
def test_a_fold_that_was_trained_with_other_adapters_does_not_fit(tmp_path, field, value):
    (tmp_path / "fold_0").mkdir()
    save(tmp_path / "fold_0" / "checkpoint_final.pth", unet(), TRAINER_OF_SECTION["stage3"])
    (tmp_path / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    plans = tiny.plans()
    plans["configurations"][CONFIGURATION]["unimrseg"] = {"stage3": {"initial_lr": 0.5}}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    assert list(segmentation_checkpoints(tmp_path, None, "checkpoint_final.pth"))
    plans["configurations"][CONFIGURATION]["unimrseg"] = {"stage3": {field: value}}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(UserError, match=rf"stage3\.{field}: \w+ in the checkpoint, {value} in the plans"):
        list(segmentation_checkpoints(tmp_path, None, "checkpoint_final.pth"))
