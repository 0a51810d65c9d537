"""Evaluations stored in real checkpoints: what is stored, what replaces it, that nothing else in the file changes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from evaluated_checkpoints import (
    equal,
    evaluated,
    network,
    only,
    stored,
    weights_sha256_of_seed,
    write,
)
from test_trainer_steps import batch, folders  # noqa: F401

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.in_checkpoint import (
    KEY,
    FoldEvaluations,
    combine_folds,
    store_evaluation,
    weights_sha256,
)
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint
from nnunetv2_unimrseg.utils.hardware import device_option


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint with what nnU-Net's trainer writes: weights, an optimizer's state, numpy numbers."""
    return write(tmp_path / "fold_0" / "checkpoint_final.pth")


def test_the_hash_depends_on_names_shapes_types_and_values_only():
    weights = network().state_dict()
    assert weights_sha256(weights) == weights_sha256(dict(reversed(weights.items())))
    assert weights_sha256(weights) == weights_sha256({key: value.clone() for key, value in weights.items()})
    name = "0.weight"
    transposed = weights[name].permute(0, 1, 3, 2, 4).contiguous().permute(0, 1, 3, 2, 4)
    assert weights_sha256(weights) == weights_sha256({**weights, name: transposed})
    tensor = weights[name].clone()
    tensor.view(-1)[-1] = torch.nextafter(tensor.view(-1)[-1], torch.tensor(10.0))
    changed = [
        {**weights, name: tensor},
        {**weights, name: weights[name].reshape(4, 2, 3, 3, 3)},
        {**weights, name: weights[name].view(torch.int32)},
        {("0.w" if key == name else key): value for key, value in weights.items()},
        {key: value for key, value in weights.items() if key != name},
    ]
    assert len({weights_sha256(one) for one in (weights, *changed)}) == 6


def test_the_hash_takes_every_type_and_empty_and_scalar_tensors():
    types = (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)
    for dtype in types:
        ones = weights_sha256({"a": torch.ones(3, dtype=dtype)})
        assert ones != weights_sha256({"a": torch.zeros(3, dtype=dtype)}) and len(ones) == 64
    shapes = [weights_sha256({"a": torch.zeros(shape)}) for shape in ((), (1,), (0,), (0, 2))]
    assert len(set(shapes)) == 4


# --- storing ------------------------------------------------------------------------------------------------------


def test_what_is_stored_comes_back_and_all_else_is_as_it_was(checkpoint):
    before = read_checkpoint(checkpoint)
    os.chmod(checkpoint, 0o640)
    evaluation = evaluated(checkpoint)
    evaluation.scores.loc[3, "hd95_mm"] = np.nan
    assert store_evaluation(checkpoint, evaluation, "0") is None
    after = read_checkpoint(checkpoint)
    assert equal({key: after[key] for key in before}, before)
    assert list(after) == [*before, KEY]
    assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o640
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    (found,) = stored(checkpoint).evaluations
    expected = evaluation.scores[["case", "fold", "subset", "label", "dice", "hd95_mm"]]
    pd.testing.assert_frame_equal(found.scores, expected, check_dtype=False)
    assert found.modalities == evaluation.settings["modalities"] and found.num_cases == 5
    assert found.conventions == {"empty": "brats", "failure_dice": 0.1}
    assert found.subset_name(["T1ce", "T1"]) == "T1+T1ce"


def test_stored_are_plain_types_and_few_bytes(checkpoint):
    size = checkpoint.stat().st_size
    evaluation = evaluated(checkpoint, num_cases=50)
    store_evaluation(checkpoint, evaluation, "0")
    content = read_checkpoint(checkpoint)[KEY]
    assert json.loads(json.dumps(content)) == content
    assert checkpoint.stat().st_size - size < 40 * len(evaluation.scores)


def test_only_the_folds_own_validation_cases_are_stored_and_all_external_ones(tmp_path):
    paths = [write(tmp_path / f"fold_{fold}" / "checkpoint_final.pth", seed=fold) for fold in (0, 1)]
    store_evaluation(paths[1], evaluated(*paths, num_cases=5), "1")
    (validation,) = stored(paths[1]).evaluations
    assert set(validation.scores["case"]) == {"case_01", "case_03"} and validation.folds == ["1"]
    store_evaluation(paths[1], evaluated(*paths, kind="external", num_cases=3), "1")
    validation_again, external = stored(paths[1]).evaluations
    assert validation_again.pairs == validation.pairs
    assert external.num_cases == 3 and external.folds == ["0", "1"]


def test_more_is_not_replaced_by_less_of_the_same(checkpoint):
    large = evaluated(checkpoint, num_cases=4)
    store_evaluation(checkpoint, large, "0")
    before = checkpoint.read_bytes()
    fewer_subsets = only(large, large.scores["subset"] != "T1")
    message = store_evaluation(checkpoint, fewer_subsets, "0")
    assert "56 pairs" in message and "4 more" in message and checkpoint.read_bytes() == before
    other_cases = only(
        evaluated(checkpoint, num_cases=6), evaluated(checkpoint, num_cases=6).scores["case"] > "case_03"
    )
    assert store_evaluation(checkpoint, other_cases, "0") is None
    assert stored(checkpoint).evaluations[0].num_cases == 2
    assert store_evaluation(checkpoint, large, "0") is None
    assert store_evaluation(checkpoint, evaluated(checkpoint, num_cases=4, seed=9), "0") is None
    (found,) = stored(checkpoint).evaluations
    assert found.scores["dice"].tolist() != large.scores["dice"].tolist()


def test_more_made_otherwise_is_kept_and_more_that_contradicts_is_replaced(checkpoint):
    large = evaluated(checkpoint, num_cases=4)
    fewer = only(large, large.scores["subset"] == "T1")
    store_evaluation(checkpoint, large, "0")
    quick = dataclasses.replace(fewer, settings={**fewer.settings, "prediction": {"mirroring": False}})
    quick.scores["dice"] *= 0.9
    assert "keeps" in store_evaluation(checkpoint, quick, "0")
    corrected = dataclasses.replace(fewer, scores=fewer.scores.assign(dice=fewer.scores["dice"] * 0.5))
    assert store_evaluation(checkpoint, corrected, "0") is None
    assert set(stored(checkpoint).evaluations[0].scores["subset"]) == {"T1"}


def test_an_evaluation_of_other_weights_is_not_stored(checkpoint):
    evaluation = evaluated(checkpoint)
    write(checkpoint, seed=1)
    before = checkpoint.read_bytes()
    with pytest.raises(UserError, match=r"changed since it was evaluated.*unimrseg evaluate -d Dataset998_Tiny"):
        store_evaluation(checkpoint, evaluation, "0")
    assert checkpoint.read_bytes() == before


def test_nothing_to_store(checkpoint):
    evaluation = evaluated(checkpoint)
    assert "No case of fold 0 was scored" in store_evaluation(
        checkpoint, only(evaluation, evaluation.scores["dice"] > 2), "0"
    )
    assert KEY not in read_checkpoint(checkpoint)


def failing(error: BaseException):
    def fail(*arguments, **keywords):
        raise error

    return fail


@pytest.mark.parametrize(
    ("module", "function", "error"),
    [
        (os, "replace", PermissionError(13, "Permission denied")),
        (torch, "save", OSError(28, "No space left on device")),
        (torch, "save", RuntimeError("PytorchStreamWriter failed writing file")),
        (os, "fsync", OSError(5, "Input/output error")),
        (Path, "open", PermissionError(30, "Read-only file system")),
    ],
)
def test_a_failed_write_leaves_the_file_as_it_was(checkpoint, monkeypatch, module, function, error):
    evaluation = evaluated(checkpoint)
    before = checkpoint.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(module, function, failing(error))
        with pytest.raises(
            UserError, match=r"was not stored in its checkpoint. Cannot write .* What was there before is unchanged"
        ) as caught:
            store_evaluation(checkpoint, evaluation, "0")
    assert (getattr(error, "strerror", None) or str(error)) in str(caught.value)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_an_interrupt_leaves_nothing_behind(checkpoint, monkeypatch):
    evaluation = evaluated(checkpoint)
    before = checkpoint.read_bytes()
    monkeypatch.setattr(os, "fsync", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        store_evaluation(checkpoint, evaluation, "0")
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_checkpoint_written_meanwhile_by_a_training_is_kept(checkpoint, monkeypatch):
    evaluation = evaluated(checkpoint)
    save = torch.save

    def save_while_training(*arguments):
        save(*arguments)
        monkeypatch.undo()
        write(checkpoint, seed=5)

    monkeypatch.setattr(torch, "save", save_while_training)
    with pytest.raises(UserError, match="changed by another process"):
        store_evaluation(checkpoint, evaluation, "0")
    content = read_checkpoint(checkpoint)
    assert KEY not in content and weights_sha256(content["network_weights"]) == weights_sha256_of_seed(5)


def test_a_linked_checkpoint_stays_a_link(checkpoint, tmp_path):
    link = tmp_path / "linked" / "fold_0" / "checkpoint_final.pth"
    link.parent.mkdir(parents=True)
    link.symlink_to(checkpoint)
    store_evaluation(link, evaluated(checkpoint), "0")
    assert link.is_symlink() and KEY in read_checkpoint(checkpoint)


# --- reading ------------------------------------------------------------------------------------------------------


def test_weights_that_changed_are_one_error_with_the_command(checkpoint):
    store_evaluation(checkpoint, evaluated(checkpoint), "0")
    content = read_checkpoint(checkpoint)
    content["network_weights"]["0.bias"] += 1
    torch.save(content, checkpoint)
    with pytest.raises(UserError) as caught:
        stored(checkpoint)
    assert f"The weights in {checkpoint} changed since the evaluation was stored in it" in str(caught.value)
    command = "unimrseg evaluate -d Dataset998_Tiny -c 3d_fullres -f 0 -tr UniMRSegStage3Trainer -p nnUNetPlans"
    command += device_option()
    assert f"`{command}`" in str(caught.value)
    assert store_evaluation(checkpoint, evaluated(checkpoint), "0") is None
    assert len(stored(checkpoint).evaluations) == 1


def test_another_format_is_none_with_a_note(checkpoint):
    content = read_checkpoint(checkpoint)
    torch.save({**content, KEY: {"format": 99, "evaluations": "?"}}, checkpoint)
    found = stored(checkpoint)
    assert found.evaluations == () and "another version" in found.note
    assert combine_folds([found]) == (None, found.note)
    assert stored(write(checkpoint)) == FoldEvaluations("0", weights_sha256_of_seed(0))


# --- pooling ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_copied_to_another_fold_is_no_changed_one(checkpoint, tmp_path):
    store_evaluation(checkpoint, evaluated(checkpoint), "0")
    copy = tmp_path / "fold_1" / checkpoint.name
    copy.parent.mkdir()
    shutil.copy(checkpoint, copy)
    found = stored(copy)
    assert found.evaluations == () and "copied from another fold" in found.note
