"""How often commands read a checkpoint, and that a predictor built from what was read is nnU-Net's."""

from __future__ import annotations

import collections
import json
from pathlib import Path

import pytest
import reconstructors
import tiny
import torch
import trained
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.nnunet import trained_model
from nnunetv2_unimrseg.nnunet.trained_model import findable_trainers, trained_checkpoints
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer

FOLDS = ("0", "1")
QUICK = ("-npp", "0", "-nps", "0", "-device", "cpu", "--disable_progress_bar", "--disable_tta")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """nnU-Net's folders with four cases, one of which each fold validates."""
    trained.write_dataset(tmp_path, ["a", "b", "c", "d"], [["a"], ["b"]])
    for variable in ("raw", "preprocessed", "results"):
        (tmp_path / variable).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def reads(monkeypatch):
    """Counts the calls of `torch.load` by the name of the checkpoint's folder."""
    counted, load = collections.Counter(), torch.load

    def counting(path, **options):
        counted[Path(path).parent.name] += 1
        return load(path, **options)

    monkeypatch.setattr(torch, "load", counting)
    return counted


ONCE = {f"fold_{fold}": 1 for fold in FOLDS}


def run(command: str, *words: object) -> None:
    assert main([command, *map(str, words)]) == 0


@pytest.mark.parametrize("more", [(), ("--no_report",)])
def test_predict_reads_each_checkpoint_once(root, reads, more):
    model = trained.write_model(root / "results", folds=FOLDS)
    run("predict", "-i", root / "raw" / trained.DATASET / "imagesTr", "-o", root / "out", "-m", model, "-f", *FOLDS,
        *QUICK, *more)  # fmt: skip
    assert reads == ONCE and (root / "out" / "report.json").exists() == (not more)


@pytest.mark.parametrize(
    ("own_cases", "folds", "expected"),
    [
        (True, FOLDS, 1),
        (False, FOLDS[:1], 1),
        (False, FOLDS, 2),  # to check all of them first, and to predict without keeping the weights of every fold
    ],
)
def test_evaluate_reads_each_checkpoint_once_where_its_folds_predict_together(root, reads, own_cases, folds, expected):
    model = trained.write_model(root / "results", folds=FOLDS)
    raw = root / "raw" / trained.DATASET
    given = ("-i", raw / "imagesTr", "-l", raw / "labelsTr") if own_cases else ()
    words = (*given, "-o", root / "out", "-m", model, "-f", *folds, *QUICK, "--subsets", "complete", "--no_report")
    run("evaluate", *words, "--no_store")
    assert reads == {f"fold_{fold}": expected for fold in folds}
    reads.clear()
    run("evaluate", *words)
    assert reads == {f"fold_{fold}": 2 for fold in folds}, "one to check the model, one to store the evaluation"


def test_reconstruct_reads_each_checkpoint_once(tmp_path, reads):
    model = reconstructors.write_model(tmp_path, folds=FOLDS)
    tiny.write_case(tmp_path / "in", "case", tiny.image(1), (0, 1, 2))
    run("reconstruct", "-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model, "-f", *FOLDS, *QUICK[:-1])
    assert reads == ONCE


def test_info_reads_none(root, reads):
    trained.write_model(root / "results", folds=FOLDS)
    (root / "preprocessed" / trained.DATASET / "nnUNetPlans.json").write_text(json.dumps(tiny.plans()))
    run("info", "-d", "998", "-c", trained.CONFIGURATION)
    assert not reads


def test_a_stage_reads_the_checkpoint_that_it_starts_from_once(root, reads, monkeypatch):
    monkeypatch.setattr(nnUNetTrainer, "on_train_start", lambda _: None)
    model = trained.write_model(root / "results", TRAINER_OF_SECTION["stage1"])
    monkeypatch.setattr("nnunetv2_unimrseg.trainers.base.check_preprocessed_cases", lambda *_: None)
    stage2 = tiny.trainer(UniMRSegStage2Trainer)
    monkeypatch.setattr(stage2, "initial_checkpoint", lambda: model / "fold_0" / "checkpoint_final.pth")
    stage2.on_train_start()
    assert reads == {"fold_0": 1} and stage2.weights_were_loaded


def test_the_state_of_the_optimizer_is_dropped(tmp_path):
    model = trained.write_model(tmp_path)
    path = model / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    torch.save({**content, "optimizer_state": {"state": 1}, "grad_scaler_state": None, "current_epoch": 7}, path)
    ((_, checkpoint),) = trained_checkpoints(model, None, "checkpoint_final.pth")
    assert checkpoint.keys() == content.keys() | {"current_epoch"}


# --- the same predictor as nnU-Net's ----------------------------------------------------------------------------------


def loaded(predictor: nnUNetPredictor, model: Path, **options: object) -> nnUNetPredictor:
    with findable_trainers():
        predictor.initialize_from_trained_model_folder(str(model), FOLDS, "checkpoint_final.pth", **options)
    return predictor


def both(model: Path, **options: object) -> tuple[UniMRSegPredictor, nnUNetPredictor]:
    settings = {"device": torch.device("cpu"), "perform_everything_on_device": False}
    return loaded(UniMRSegPredictor(**settings), model, **options), loaded(nnUNetPredictor(**settings), model)


def assert_equal(ours: nnUNetPredictor, theirs: nnUNetPredictor) -> None:
    for name in ("trainer_name", "allowed_mirroring_axes", "dataset_json"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert type(ours.network) is type(theirs.network) and ours.network.training == theirs.network.training
    assert ours.configuration_manager.configuration == theirs.configuration_manager.configuration
    assert ours.label_manager.all_labels == theirs.label_manager.all_labels
    assert len(ours.list_of_parameters) == len(theirs.list_of_parameters) == len(FOLDS)
    states = (ours.network.state_dict(), *ours.list_of_parameters)
    expected = (theirs.network.state_dict(), *theirs.list_of_parameters)
    for state, other in zip(states, expected, strict=True):
        assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in other)


@pytest.mark.parametrize("trainer", [TRAINER_OF_SECTION["stage2"], trained.STOCK])
def test_the_predictor_is_nnunets(tmp_path, trainer):
    ours, theirs = both(trained.write_model(tmp_path, trainer, FOLDS), zero_fill=True)
    assert_equal(ours, theirs)
    assert ours.fills_zeros == (trainer == trained.STOCK)
    assert [path.parent.name for path, _ in ours.checkpoints] == list(ONCE)
    weights = [checkpoint["network_weights"] for _, checkpoint in ours.checkpoints]
    assert all(one is other for one, other in zip(weights, ours.list_of_parameters, strict=True))


class OldTrainer(nnUNetTrainer):
    """A trainer with the signature that nnU-Net calls old."""

    @staticmethod
    def build_network_architecture(
        architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
        num_output_channels, enable_deep_supervision=True,
    ):  # fmt: skip
        assert architecture_class_name.endswith("PlainConvUNet") and not enable_deep_supervision
        return trained.get_network_from_plans(
            architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import, num_input_channels,
            num_output_channels, deep_supervision=enable_deep_supervision,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Trainer nnUNetTrainer uses the old")
def test_trainers_with_the_old_signature_are_built(tmp_path, monkeypatch):
    for module in (trained_model, predict_from_raw_data):
        monkeypatch.setattr(module, "recursive_find_trainer_class_by_name", lambda _: OldTrainer)
    assert_equal(*both(trained.write_model(tmp_path, trained.STOCK, FOLDS), zero_fill=True))


@pytest.mark.parametrize("value", ["1", "true", "false"])
def test_the_network_is_compiled_where_nnunet_compiles_it(tmp_path, monkeypatch, value):
    compiled = []
    monkeypatch.setenv("nnUNet_compile", value)
    monkeypatch.setattr(torch, "compile", lambda network: compiled.append(network) or network)
    ours, theirs = both(trained.write_model(tmp_path, trained.STOCK, FOLDS), zero_fill=True)
    assert compiled == ([] if value == "false" else [ours.network, theirs.network])
