"""Which cases a fold trains and validates with, and how batches are made of labelled and unlabelled ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_unimrseg.data.case_table import TrainingCase, write_case_table
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.trainers.batches import MixedDataLoader, StepOrder, unlabelled_samples
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

STAGES = (UniMRSegStage1Trainer, UniMRSegStage2Trainer, UniMRSegStage3Trainer)
LABELLED = [f"patient{number}_{visit}" for number in range(6) for visit in "ab"]
UNLABELLED = ["patient0_c", "patient8_a", "patient9_a"]
BY_PATIENT = {"unimrseg": {"patient": "(patient[0-9])_"}}


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """A planned dataset whose preprocessed cases are there by name only."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    folder = tmp_path / "preprocessed" / "Dataset998_Tiny"
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    for case in LABELLED + UNLABELLED:
        (folder / "nnUNetPlans_3d_fullres" / f"{case}.b2nd").touch()
    write_table(folder)
    return folder


def write_table(folder: Path, unlabelled: list[str] = UNLABELLED) -> None:
    table = {name: TrainingCase(tiny.NAMES, name not in unlabelled) for name in LABELLED + UNLABELLED}
    table[LABELLED[0]] = TrainingCase(tiny.NAMES[:3], labelled=True)
    write_case_table(folder, table)


def make(trainer: type, fold: int | str = 0, dataset_json: dict | None = None, **settings: object):
    made = {**tiny.plans(), "continue_training": False}
    configuration = made["configurations"]["3d_fullres"]
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3, features_per_stage=[4, 8, 12], kernel_sizes=[[3, 3, 3]] * 3, n_conv_per_stage=[1, 1, 1],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], n_conv_per_stage_decoder=[1, 1],
    )  # fmt: skip
    share = {"unlabelled_share": 0.5} if trainer in STAGES[1:] else {}
    configuration["unimrseg"] = {trainer.section: {**share, **settings}}
    return trainer(made, "3d_fullres", fold, {**tiny.dataset_json(), **(dataset_json or {})}, torch.device("cpu"))


@pytest.mark.parametrize("trainer", STAGES)
def test_the_split_is_nnunets_of_the_labelled_cases_and_the_unlabelled_ones_train_in_every_fold(dataset, trainer):
    expected = generate_crossval_split(sorted(LABELLED), seed=12345, n_splits=5)
    for fold in range(5):
        training, validation = make(trainer, fold).do_split()
        assert training == [*expected[fold]["train"], *UNLABELLED]
        assert validation == expected[fold]["val"]
    assert json.loads((dataset / "splits_final.json").read_text()) == expected


def test_the_control_and_a_share_of_zero_train_with_labelled_cases_only(dataset):
    expected = generate_crossval_split(sorted(LABELLED), seed=12345, n_splits=5)[0]["train"]
    assert make(UniMRSegModalityDropoutTrainer).do_split()[0] == expected
    assert make(UniMRSegStage2Trainer, unlabelled_share=0.0).do_split()[0] == expected
    assert make(UniMRSegStage3Trainer, unlabelled_share=0.0).do_split()[0] == expected
    assert make(UniMRSegStage2Trainer, contrastive_weight=0.0, teacher_weight=0.0).do_split()[0] == expected
    assert make(UniMRSegStage3Trainer, feature_weight=0.0, prediction_weight=0.0).do_split()[0] == expected
    splits = [{"train": LABELLED[2:] + UNLABELLED, "val": LABELLED[:2]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    assert make(UniMRSegModalityDropoutTrainer).do_split()[0] == LABELLED[2:]


def test_fold_all_trains_with_everything_and_validates_labelled_cases(dataset):
    training, validation = make(UniMRSegStage3Trainer, "all").do_split()
    assert sorted(training) == sorted(LABELLED + UNLABELLED)
    assert sorted(validation) == sorted(LABELLED)
    assert not (dataset / "splits_final.json").exists()


def test_a_fold_that_the_file_does_not_list_is_drawn_of_the_labelled_cases(dataset):
    training, validation = make(UniMRSegStage3Trainer, 7).do_split()
    assert sorted([*training, *validation]) == sorted(LABELLED + UNLABELLED)
    assert set(UNLABELLED) < set(training)


def test_cases_of_a_patient_stay_on_one_side(dataset):
    for fold in range(5):
        training, validation = make(UniMRSegStage2Trainer, fold, BY_PATIENT).do_split()
        assert not {case[:8] for case in training} & {case[:8] for case in validation}
        held_out = ["patient0_c"] if "patient0_a" in validation else []
        assert sorted([*training, *validation, *held_out]) == sorted(LABELLED + UNLABELLED)
    write_table(dataset, unlabelled=[])  # without unlabelled cases too
    (dataset / "splits_final.json").unlink()
    training, validation = make(UniMRSegStage2Trainer, 1, BY_PATIENT).do_split()
    assert not {case[:8] for case in training} & {case[:8] for case in validation}


def test_views_of_one_patient_are_recognised_in_contrast(dataset):
    made = make(UniMRSegStage2Trainer, 0, BY_PATIENT)
    assert made.patient_name("patient3_b") == made.patient_name("patient3_a") == "patient3"
    assert make(UniMRSegStage2Trainer).patient_name("patient3_b") == "patient3_b"


BAD_PATTERNS = [
    ("patient[0-9]", "has no group"),
    ("(patient[0-9]", "cannot be used"),
    (3, "cannot be used"),
    ("(case)", "does not match the case 'patient0_a'"),
]


@pytest.mark.parametrize(("pattern", "words"), BAD_PATTERNS)
def test_a_pattern_that_names_no_patient_is_one_error(dataset, pattern, words):
    with pytest.raises(UserError, match=words):
        make(UniMRSegStage2Trainer, 0, {"unimrseg": {"patient": pattern}}).do_split()


def test_unlabelled_cases_for_validation_are_one_error(dataset):
    splits = [{"train": LABELLED, "val": UNLABELLED[1:]}]
    (dataset / "splits_final.json").write_text(json.dumps(splits))
    with pytest.raises(UserError, match=r"2 cases without a label in the validation of fold 0.*\n.*patient8_a"):
        make(UniMRSegStage2Trainer).do_split()


def test_too_few_labelled_patients_for_folds_are_one_error(dataset):
    write_table(dataset, unlabelled=LABELLED[2:])
    with pytest.raises(UserError, match=r"labelled cases of \d+ patients?, too few for nnU-Net's 5 folds"):
        make(UniMRSegStage2Trainer, 0, BY_PATIENT).do_split()


def test_without_unlabelled_cases_the_split_is_nnunets_own(dataset, monkeypatch):
    (dataset / "unimrseg_cases.json").unlink()
    asked = []
    monkeypatch.setattr(stock_module.nnUNetTrainer, "do_split", lambda self: asked.append(self) or (["a"], ["b"]))
    assert make(UniMRSegStage2Trainer).do_split() == (["a"], ["b"])
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("share", "batch_size", "expected"),
    [(0.5, 2, 1), (0.5, 1, 0), (0.1, 2, 1), (0.9, 2, 1), (0.25, 8, 2), (0.0, 8, 0), (0.9, 4, 3)],
)
def test_the_number_of_unlabelled_samples(share, batch_size, expected):
    assert unlabelled_samples(share, batch_size) == expected


def mixed_loader(batch_size: int, **options: object) -> MixedDataLoader:
    data = SimpleNamespace(identifiers=sorted(LABELLED + UNLABELLED))
    labels = SimpleNamespace(all_labels=[0, 1], has_ignore_label=False)
    return MixedDataLoader(
        data, batch_size, (8, 8, 8), (8, 8, 8), labels, 0.33, unlabelled=frozenset(UNLABELLED), **options
    )  # fmt: skip


def test_batches_have_their_unlabelled_samples_first_and_foreground_among_the_labelled_ones():
    np.random.seed(0)
    loader = mixed_loader(4, num_unlabelled=2, mixed_every=3)
    asked = np.zeros(4)
    for number in range(1, 1201):
        cases = loader.get_indices()
        asked += [loader.get_do_oversample(sample) for sample in range(4)] if number % 3 == 0 else 0
        unlabelled = [case in UNLABELLED for case in cases]
        assert unlabelled == ([True, True, False, False] if number % 3 == 0 else [False] * 4)
        if number % 3:  # as nnU-Net: the last of four
            assert [loader.get_do_oversample(sample) for sample in range(4)] == [False, False, False, True]
    assert not asked[:2].any()
    assert asked[2:] / 400 == pytest.approx(0.25, abs=0.07)


def test_steps_get_batches_of_their_kind_in_whatever_order_they_come():
    kinds = [True, False, False, True, False, False, False, True, False, False, False, False]
    batches = iter([{"keys": np.array([UNLABELLED[0] if kind else LABELLED[0], LABELLED[1]])} for kind in kinds])
    order = StepOrder(batches, frozenset(UNLABELLED), 4)
    found = [next(order)["keys"][0] in UNLABELLED for _ in range(12)]
    assert found == ([False] * 3 + [True]) * 3


@pytest.fixture
def real_cases(dataset, monkeypatch) -> Path:
    """The dataset's cases with contents: what is missing is NaN, what is unlabelled has a label of zeros."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.delenv("nnUNet_compile", raising=False)
    rng = np.random.default_rng(0)
    folder = dataset / "nnUNetPlans_3d_fullres"
    for case in LABELLED + UNLABELLED:
        (folder / f"{case}.b2nd").unlink()
        data = rng.normal(size=(4, 18, 18, 18)).astype(np.float32)
        label = rng.integers(0, 3, (1, 18, 18, 18)).astype(np.int8)
        if case == LABELLED[0]:
            data[3] = np.nan
        if case in UNLABELLED:
            label[:] = 0
        places = {number: np.argwhere(label == number) for number in (1, 2)}
        nnUNetDatasetBlosc2.save_case(data, label, {"class_locations": places}, str(folder / case))
    return dataset


@pytest.mark.parametrize(
    ("trainer", "weight"),
    [*((trainer, 0.0) for trainer in (*STAGES, UniMRSegModalityDropoutTrainer)), (UniMRSegStage2Trainer, 1.0)],
)
def test_batches_and_steps_of_a_dataset_with_unlabelled_and_incomplete_cases(real_cases, trainer, weight):
    before = dict(vars(stock_module))
    splits = [{"train": LABELLED[:4], "val": [LABELLED[0], LABELLED[5]]}]
    (real_cases / "splits_final.json").write_text(json.dumps(splits))
    every = {"pairs_every": 2, **({"teacher_weight": weight} if trainer is UniMRSegStage2Trainer else {})}
    every = every if trainer in STAGES[1:] else {}
    made = make(trainer, cpu_precision="float32", **every)
    made.initialize()
    made.dataloader_train, made.dataloader_val = made.get_dataloaders()
    made.network.train()
    unlabelled = []
    for _ in range(6):
        batch = next(made.dataloader_train)
        unlabelled.append(sum(case in UNLABELLED for case in batch["keys"]))
        for sample, case in zip(batch["data"], batch["keys"], strict=True):
            assert torch.isnan(sample).flatten(1).all(1).tolist() == [False] * 3 + [case == LABELLED[0]]
        assert np.isfinite(made.train_step(batch)["loss"])
    if trainer in STAGES[1:]:
        assert unlabelled == [0, 1] * 3
    elif trainer is UniMRSegModalityDropoutTrainer:
        assert not any(unlabelled)
    made.network.eval()
    made.on_validation_epoch_start()
    with torch.no_grad():
        outputs = [made.validation_step(next(made.dataloader_val)) for _ in range(4)]
    made.on_validation_epoch_end(outputs)
    assert np.isfinite(made.logger.get_value("val_losses", step=0))
    log = Path(made.log_file).read_text()
    others = 0 if trainer is UniMRSegModalityDropoutTrainer else 3
    assert f"Fold 0 trains with 4 labelled cases and {others} unlabelled; 1 of them lack a modality." in log
    assert dict(vars(stock_module)) == before
    made.save_checkpoint = lambda _: None
    made.on_train_end()


def test_stage_1_scores_a_case_for_what_it_has(real_cases):
    made = make(UniMRSegStage1Trainer, cpu_precision="float32")
    made.initialize()
    predictor = SimpleNamespace(predict_sliding_window_return_logits=lambda data: data.nan_to_num(0))
    complete, incomplete = (made._score_case(predictor, case)["metrics"] for case in (LABELLED[1], LABELLED[0]))
    assert len(complete) == 14
    first, second, third, _ = tiny.NAMES
    assert set(incomplete) == {first, second, third, f"{first}+{second}", f"{first}+{third}", f"{second}+{third}"}
    assert all(list(scores) == [first, second, third] for scores in incomplete.values())
    assert all(np.isfinite(score["L1"]) for scores in incomplete.values() for score in scores.values())
