"""Evaluations stored in real checkpoints: what is stored, what replaces it, that nothing else in the file changes."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from pathlib import Path

import evaluations
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_trainer_steps import batch, folders  # noqa: F401
from test_trainer_steps import make as make_trainer

from nnunetv2_unimrseg.checkpoints import read_checkpoint
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.results import Evaluation
from nnunetv2_unimrseg.networks.build import build_network
from nnunetv2_unimrseg.stored_evaluation import (
    KEY,
    FoldEvaluations,
    StoredEvaluation,
    pooled,
    read_stored_evaluations,
    store_evaluation,
    weights_sha256,
)
from nnunetv2_unimrseg.trained_model import findable_trainers
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv3d(4, 2, 3), torch.nn.BatchNorm3d(2))


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint with what nnU-Net's trainer writes: weights, an optimizer's state, numpy numbers."""
    return write(tmp_path / "fold_0" / "checkpoint_final.pth")


def write(path: Path, seed: int = 0) -> Path:
    module = network(seed)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(2, 4, 4, 4, 4)).sum().backward()
    optimizer.step()
    plans = {"dataset_name": "Dataset998_Tiny", "plans_name": "nnUNetPlans"}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "network_weights": module.state_dict(),
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)]},
            "_best_ema": np.float64(0.25),
            "current_epoch": 3,
            "init_args": {"configuration": "3d_fullres", "plans": plans},
            "trainer_name": "UniMRSegStage3Trainer",
            "inference_allowed_mirroring_axes": (0, 1, 2),
        },
        path,
    )
    return path


def evaluated(*paths: Path, kind: str = "validation", **keywords) -> Evaluation:
    """Return a made-up evaluation of these checkpoints; its cases are spread over the folds."""
    evaluation = evaluations.made_up(**keywords)
    hashes = {
        path.parent.name.removeprefix("fold_"): weights_sha256(read_checkpoint(path)["network_weights"])
        for path in paths
    }
    evaluation.settings["kind"] = kind
    evaluation.settings["model"] |= {"folds": list(hashes), "weights_sha256": hashes}
    numbers = evaluation.scores["case"].str.extract(r"(\d+)", expand=False).astype(int)
    folds = list(hashes)
    scores = evaluation.scores.assign(fold=[folds[number % len(folds)] for number in numbers])
    return dataclasses.replace(evaluation, scores=scores)


def stored(path: Path) -> FoldEvaluations:
    return read_stored_evaluations(read_checkpoint(path), path)


def only(evaluation: Evaluation, rows: pd.Series) -> Evaluation:
    return dataclasses.replace(evaluation, scores=evaluation.scores[rows])


def equal(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


# --- the hash -----------------------------------------------------------------------------------------------------


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
        with pytest.raises(UserError, match="which is as it was") as caught:
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


def weights_sha256_of_seed(seed: int) -> str:
    module = network(seed)
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    module(torch.ones(2, 4, 4, 4, 4)).sum().backward()
    optimizer.step()
    return weights_sha256(module.state_dict())


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
    assert f"`{command}`" in str(caught.value)
    assert store_evaluation(checkpoint, evaluated(checkpoint), "0") is None
    assert len(stored(checkpoint).evaluations) == 1


def test_another_format_is_none_with_a_note(checkpoint):
    content = read_checkpoint(checkpoint)
    torch.save({**content, KEY: {"format": 99, "evaluations": "?"}}, checkpoint)
    found = stored(checkpoint)
    assert found.evaluations == () and "another version" in found.note
    assert pooled([found]) == (None, found.note)
    assert stored(write(checkpoint)) == FoldEvaluations("0", weights_sha256_of_seed(0))


# --- pooling ------------------------------------------------------------------------------------------------------


def folds_with(tmp_path, *kinds: str, num_cases: int = 6, **changed) -> list[FoldEvaluations]:
    """Return what two folds hold that were evaluated in these ways."""
    paths = [write(tmp_path / f"fold_{fold}" / "checkpoint_final.pth", seed=fold) for fold in (0, 1)]
    for kind in kinds:
        evaluation = evaluated(*paths, kind=kind, num_cases=num_cases)
        for fold, path in enumerate(paths):
            store_evaluation(path, evaluation, str(fold))
    return [stored(path) for path in paths]


def test_validation_evaluations_of_all_folds_are_one(tmp_path):
    folds = folds_with(tmp_path, "validation")
    evaluation, why_none = pooled(folds)
    assert why_none == "" and evaluation.folds == ["0", "1"] and evaluation.num_cases == 6
    assert sorted(evaluation.scores["case"].unique()) == [f"case_{number:02d}" for number in range(6)]
    assert len(evaluation.scores) == 6 * 15 * 3
    alone, _ = pooled(folds[1:])
    assert set(alone.scores["case"]) == {"case_01", "case_03", "case_05"}


def test_an_external_evaluation_counts_once_and_for_exactly_its_folds(tmp_path):
    folds = folds_with(tmp_path, "external")
    evaluation, _ = pooled(folds)
    assert evaluation.kind == "external" and evaluation.num_cases == 6 and len(evaluation.scores) == 6 * 15 * 3
    none, why = pooled(folds[:1])
    assert none is None and "only of other folds together: 0 1" in why
    retrained = dataclasses.replace(folds[1], weights_sha256="0" * 64, evaluations=())
    assert pooled([folds[0], retrained])[0] is None


def test_of_both_kinds_the_one_with_more_is_taken(tmp_path):
    folds = folds_with(tmp_path, "validation", "external")
    assert pooled(folds)[0].kind == "external"
    (tmp_path / "more").mkdir()
    few = folds_with(tmp_path / "more", "validation")
    paths = [tmp_path / "more" / f"fold_{fold}" / "checkpoint_final.pth" for fold in (0, 1)]
    for fold, path in enumerate(paths):
        store_evaluation(path, evaluated(*paths, kind="external", num_cases=2), str(fold))
    assert pooled([stored(path) for path in paths])[0].kind == "validation"
    assert pooled(few)[0].kind == "validation"


def changed(fold: FoldEvaluations, **values) -> FoldEvaluations:
    return dataclasses.replace(fold, evaluations=(dataclasses.replace(fold.evaluations[0], **values),))


def test_why_there_is_none(tmp_path):
    folds = folds_with(tmp_path, "validation")

    def why(*found: FoldEvaluations) -> str:
        evaluation, reason = pooled(found)
        assert evaluation is None
        return reason

    assert "no evaluation of this model" in why(FoldEvaluations("0", "a"), FoldEvaluations("1", "b"))
    assert "fold 1 of this model has not been evaluated" in why(folds[0], FoldEvaluations("1", "b"))
    for name, value in (
        ("modalities", ["A", "B"]),
        ("labels", ["edema"]),
        ("conventions", {"empty": "skip", "failure_dice": 0.1}),
    ):
        assert f"different {name}" in why(folds[0], changed(folds[1], **{name: value}))


def test_subsets_of_which_only_one_fold_has_scores(tmp_path):
    folds = folds_with(tmp_path, "validation")
    evaluation: StoredEvaluation = folds[1].evaluations[0]
    without = evaluation.scores[evaluation.scores["subset"] != "T1"]
    together, _ = pooled([folds[0], changed(folds[1], scores=without)])
    cases = together.scores.loc[together.scores["subset"] == "T1", "case"]
    assert set(cases) == {"case_00", "case_02", "case_04"}
    assert pooled([changed(folds[1], scores=without)])[0].subset_name(["T1"]) is None


# --- nnU-Net --------------------------------------------------------------------------------------------------------


def test_nnunet_loads_a_checkpoint_with_a_stored_evaluation(tmp_path):
    model = tmp_path / "UniMRSegStage2Trainer__nnUNetPlans__3d_fullres"
    path = model / "fold_0" / "checkpoint_final.pth"
    path.parent.mkdir(parents=True)
    configuration = PlansManager(tiny.plans()).get_configuration("3d_fullres")
    weights = build_network(configuration, 4, 3, False, adapters=False).state_dict()
    torch.save(
        {
            "network_weights": weights,
            "trainer_name": "UniMRSegStage2Trainer",
            "inference_allowed_mirroring_axes": (0, 1),
            "init_args": {"configuration": "3d_fullres", "plans": tiny.plans()},
        },
        path,
    )
    (model / "plans.json").write_text(json.dumps(tiny.plans()))
    (model / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    assert store_evaluation(path, evaluated(path), "0") is None
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False)
    with findable_trainers():
        predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    assert equal(dict(predictor.network.state_dict()), dict(weights))


def test_training_loads_it_and_continued_training_drops_it(tmp_path):
    path = tmp_path / "fold_0" / "checkpoint_latest.pth"
    path.parent.mkdir()
    made = make_trainer(UniMRSegModalityDropoutTrainer)
    made.train_step(batch())
    made.save_checkpoint(str(path))
    assert store_evaluation(path, evaluated(path), "0") is None
    resumed = make_trainer(UniMRSegModalityDropoutTrainer)
    resumed.load_checkpoint(str(path))
    resumed.save_checkpoint(str(path.with_name("checkpoint_final.pth")))
    before, after = read_checkpoint(path), read_checkpoint(path.with_name("checkpoint_final.pth"))
    assert KEY in before and KEY not in after
    assert weights_sha256(before["network_weights"]) == weights_sha256(after["network_weights"])
