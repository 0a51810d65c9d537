"""What stored evaluations of several folds mean together, and that nnU-Net ignores them."""

from __future__ import annotations

import dataclasses
import json

import tiny
import torch
from evaluated_checkpoints import (
    changed,
    equal,
    evaluated,
    folds_with,
    stored,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from test_trainer_steps import batch, folders  # noqa: F401
from test_trainer_steps import make as make_trainer

from nnunetv2_unimrseg.evaluation.in_checkpoint import (
    KEY,
    FoldEvaluations,
    StoredEvaluation,
    combine_folds,
    store_evaluation,
    weights_sha256,
)
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.nnunet.checkpoints import read_checkpoint
from nnunetv2_unimrseg.nnunet.trained_model import findable_trainers
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer


def test_validation_evaluations_of_all_folds_are_one(tmp_path):
    folds = folds_with(tmp_path, "validation")
    evaluation, why_none = combine_folds(folds)
    assert why_none == "" and evaluation.folds == ["0", "1"] and evaluation.num_cases == 6
    assert sorted(evaluation.scores["case"].unique()) == [f"case_{number:02d}" for number in range(6)]
    assert len(evaluation.scores) == 6 * 15 * 3
    alone, _ = combine_folds(folds[1:])
    assert set(alone.scores["case"]) == {"case_01", "case_03", "case_05"}


def test_an_external_evaluation_counts_once_and_for_exactly_its_folds(tmp_path):
    folds = folds_with(tmp_path, "external")
    evaluation, _ = combine_folds(folds)
    assert evaluation.kind == "external" and evaluation.num_cases == 6 and len(evaluation.scores) == 6 * 15 * 3
    none, why = combine_folds(folds[:1])
    assert none is None and "only of other folds together: 0 1" in why
    retrained = dataclasses.replace(folds[1], weights_sha256="0" * 64, evaluations=())
    assert combine_folds([folds[0], retrained])[0] is None


def test_of_both_kinds_the_one_with_more_is_taken(tmp_path):
    folds = folds_with(tmp_path, "validation", "external")
    assert combine_folds(folds)[0].kind == "external"
    (tmp_path / "more").mkdir()
    few = folds_with(tmp_path / "more", "validation")
    paths = [tmp_path / "more" / f"fold_{fold}" / "checkpoint_final.pth" for fold in (0, 1)]
    for fold, path in enumerate(paths):
        store_evaluation(path, evaluated(*paths, kind="external", num_cases=2), str(fold))
    assert combine_folds([stored(path) for path in paths])[0].kind == "validation"
    assert combine_folds(few)[0].kind == "validation"


def test_why_there_is_none(tmp_path):
    folds = folds_with(tmp_path, "validation")

    def why(*found: FoldEvaluations) -> str:
        evaluation, reason = combine_folds(found)
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
    together, _ = combine_folds([folds[0], changed(folds[1], scores=without)])
    cases = together.scores.loc[together.scores["subset"] == "T1", "case"]
    assert set(cases) == {"case_00", "case_02", "case_04"}
    assert combine_folds([changed(folds[1], scores=without)])[0].subset_name(["T1"]) is None


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
