"""What nnU-Net expects of our classes, and that nothing of nnU-Net is changed by them."""

from __future__ import annotations

import inspect
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import images, train_adapters, unet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

STOCK = (nnUNetTrainer, nnUNetPredictor, DefaultPreprocessor, ConfigurationManager, PlansManager)
BEFORE = {stock: dict(vars(stock)) for stock in STOCK}

import tiny  # noqa: E402 (what follows must come after the look at nnU-Net's classes)
from training_steps import labels, stub  # noqa: E402

from nnunetv2_unimrseg.config import Stage2Config, Stage3Config  # noqa: E402
from nnunetv2_unimrseg.errors import UserError  # noqa: E402
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION  # noqa: E402
from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer  # noqa: E402
from nnunetv2_unimrseg.trainers.retrofit import UniMRSegRetrofitTrainer  # noqa: E402
from nnunetv2_unimrseg.trainers.segmentation import mark_missing  # noqa: E402
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer  # noqa: E402
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer  # noqa: E402
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer  # noqa: E402

STAGES = (UniMRSegStage1Trainer, UniMRSegStage2Trainer, UniMRSegStage3Trainer)
TRAINERS = (*STAGES, UniMRSegModalityDropoutTrainer, UniMRSegRetrofitTrainer)


def parameters(function: object) -> list[tuple[str, object]]:
    return [(parameter.name, parameter.kind) for parameter in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("trainer", TRAINERS)
def test_overrides_have_nnunets_signatures(trainer):
    assert trainer.__name__ == TRAINER_OF_SECTION[trainer.section]
    for name, stock in vars(nnUNetTrainer).items():
        if inspect.isfunction(stock) or isinstance(stock, staticmethod):
            ours = inspect.getattr_static(trainer, name)
            assert isinstance(ours, staticmethod) == isinstance(stock, staticmethod), name
            assert parameters(getattr(trainer, name)) == parameters(getattr(nnUNetTrainer, name)), name


def test_nothing_of_nnunet_is_changed():
    plans = PlansManager(tiny.plans())
    other = PlansManager(tiny.plans())
    configuration = plans.get_configuration("3d_fullres")
    for trainer in TRAINERS:
        trainer.build_network_architecture(plans, configuration, 4, 3, True)
    assert configuration.preprocessor_class is not DefaultPreprocessor
    assert other.get_configuration("3d_fullres").preprocessor_class is DefaultPreprocessor
    for stock, before in BEFORE.items():
        assert dict(vars(stock)) == before, stock


def test_stage_1_refuses_to_segment_in_one_sentence():
    plans = PlansManager(tiny.plans())
    configuration = plans.get_configuration("3d_fullres")
    network = UniMRSegStage1Trainer.build_network_architecture(plans, configuration, 4, 3, True)
    assert network(images()).shape == (2, 4, 16, 16, 16)
    assert not any(parameter.requires_grad for parameter in network.decoder.seg_layers[:-1].parameters())
    with pytest.raises(UserError, match="stage-1 model: it reconstructs images and cannot segment"):
        UniMRSegStage1Trainer.build_network_architecture(plans, configuration, 4, 3, False)


def test_mark_missing_leaves_label_channels_alone():
    data = images(channels=6)
    marked = mark_missing(data, torch.tensor([[True, False, True, True]] * 2))
    assert torch.isnan(marked[:, 1]).all()
    assert torch.equal(marked[:, [0, 2, 3, 4, 5]], data[:, [0, 2, 3, 4, 5]])


def test_views_of_stage_3_one_by_one_have_the_joint_gradient_in_bfloat16_too():
    network = unet()
    train_adapters(network)
    network.freeze_encoder()
    made = stub(UniMRSegStage3Trainer, network, "classes", Stage3Config(subsets_per_step=2))
    subsets = made._deal_subsets(2)
    made._deal_subsets = lambda _: subsets
    data, target = images(), labels("classes")
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    with torch.autocast("cpu", torch.bfloat16):
        loss, *outputs = made._teacher_view(data, target, None)
        teacher = [output.detach() for output in outputs]
        joint = loss / 2 + sum(made._student_view(data, target, None, None, subset, *teacher) for subset in subsets) / 2
    gradients = torch.autograd.grad(joint, learning, allow_unused=True)
    with torch.autocast("cpu", torch.bfloat16):
        last = made.compute_loss(data, target, {"keys": ["p1", "p2"]})
    made.backward(last)
    pairs = [(one, other.grad) for one, other in zip(gradients, learning, strict=True) if one is not None]
    error = torch.stack([(one - other).norm() for one, other in pairs]).norm()
    assert error < 0.02 * torch.stack([one.norm() for one, _ in pairs]).norm()


def test_stage_3_teaches_adapters_and_decoder_only():
    network = unet()
    network.freeze_encoder()
    made = stub(UniMRSegStage3Trainer, network, "classes", Stage3Config(pairs_every=1, subsets_per_step="all"))
    assert len(made._deal_subsets(2)) == 14
    made.compute_loss(images(), labels("classes"), {"keys": ["p1", "p2"]}).backward()
    learned = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"adapters", "decoder"}


@pytest.mark.parametrize("kind", ["classes", "regions"])
def test_ignored_voxels_give_no_supervised_gradient(kind):
    network = unet(adapters=False)
    made = stub(UniMRSegStage2Trainer, network, kind, Stage2Config(contrastive_weight=0.0, pairs_every=1))
    made.compute_loss(images(), labels(kind, ignored=True), {"keys": ["p1", "p2"]}).backward()
    total = sum(p.grad.abs().sum() for p in network.parameters() if p.grad is not None)
    assert float(total) == pytest.approx(0, abs=1e-6)


def test_complete_and_incomplete_views_of_the_paper():
    made = stub(UniMRSegStage2Trainer, unet(adapters=False), "classes", Stage2Config(views="complete_and_incomplete"))
    first, second = made._draw_views(50)
    assert first.all()
    assert not second.all(1).any()
    assert second.any(1).all()


def test_nan_never_reaches_a_loss():
    data = images()
    data[0, 1] = math.nan
    for trainer, config in ((UniMRSegStage2Trainer, Stage2Config), (UniMRSegStage3Trainer, Stage3Config)):
        adapters = trainer is UniMRSegStage3Trainer
        made = stub(trainer, unet(adapters=adapters), "classes", config(pairs_every=2))
        for _ in range(2):
            assert torch.isfinite(made.compute_loss(data, labels("classes"), {"keys": ["p1", "p2"]}))


PROMISE_6 = """
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling import plans_handler
from nnunetv2.utilities import find_objects
import os, tiny

stock = (nnUNetTrainer, nnUNetPredictor, DefaultPreprocessor, plans_handler.ConfigurationManager,
         plans_handler.PlansManager, plans_handler, find_objects)
before, environment = [dict(vars(entry)) for entry in stock], dict(os.environ)
from nnunetv2_unimrseg.nnunet_ext import unimrseg_trainers
from nnunetv2_unimrseg.inference import predictor
for name in unimrseg_trainers.__all__:
    manager = plans_handler.PlansManager(tiny.plans())
    build = getattr(unimrseg_trainers, name).build_network_architecture
    build(manager, manager.get_configuration("3d_fullres"), 4, 3, True)
    other = plans_handler.PlansManager(tiny.plans())
    assert other.get_configuration("3d_fullres").preprocessor_class is DefaultPreprocessor
changed = [entry for entry, old in zip(stock, before) if dict(vars(entry)) != old]
assert not changed, changed
assert dict(os.environ) == environment
"""


def test_a_fresh_process_finds_nnunet_as_it_was():
    folder = str(Path(__file__).parent)
    paths = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    result = subprocess.run(
        [sys.executable, "-c", PROMISE_6], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("trainer", TRAINERS)
def test_init_has_nnunets_parameters_and_defaults(trainer):
    theirs, ours = (inspect.signature(cls.__init__).parameters for cls in (nnUNetTrainer, trainer))
    assert list(ours) == list(theirs) == ["self", "plans", "configuration", "fold", "dataset_json", "device"]
    assert ours["device"].default == theirs["device"].default


@pytest.mark.parametrize("trainer", TRAINERS)
def test_settings_of_the_plans_are_the_trainers(trainer, folders):
    values = {
        "num_epochs": 3, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 5, "initial_lr": 0.5,
        "weight_decay": 0.25, "oversample_foreground_percent": 0.75, "save_every": 7,
    }  # fmt: skip
    made = tiny.trainer(trainer, **values, cpu_precision="float32")
    assert {name: getattr(made, name) for name in values} == values
    assert made.uses_bfloat16 is False
    assert tiny.trainer(trainer, cpu_precision="bfloat16").uses_bfloat16 is True
    assert made.enable_deep_supervision is True


BAD = [
    ({"num_epoch": 1}, "Did you mean 'num_epochs'", {}),
    ({}, "Nothing can be missing", {"names": ("CT",)}),
    ({}, "-device cpu", {"device": "cuda"}),
]


@pytest.mark.parametrize(("settings", "words", "options"), BAD, ids=["key", "one modality", "cuda"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_bad_input_is_one_error_and_leaves_no_folder(trainer, settings, words, options, folders, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=words):
        tiny.trainer(trainer, **options, **settings)
    assert not folders.exists()


def test_incomplete_views_need_dropout(folders):
    never = {"views": "complete_and_incomplete", "subset_sampling": "per_modality"}
    with pytest.raises(UserError, match=r"stage2\.dropout_probability = 0\.0 hardly ever drops"):
        tiny.trainer(UniMRSegStage2Trainer, **never, dropout_probability=0.0)
    assert not folders.exists()
    tiny.trainer(UniMRSegStage2Trainer, **never, dropout_probability=0.3)


def test_a_missing_stage_names_folder_and_command(folders):
    with pytest.raises(UserError) as error:
        tiny.trainer(UniMRSegStage3Trainer).initial_checkpoint()
    message = str(error.value)
    assert "UniMRSegStage2Trainer__nnUNetPlans__3d_fullres/fold_0" in message
    assert "nnUNetv2_train 998 3d_fullres 0 -tr UniMRSegStage2Trainer -p nnUNetPlans -device cpu" in message
    assert "stage3.start_from=PATH" in message
    assert tiny.trainer(UniMRSegStage1Trainer).initial_checkpoint() is None
    assert tiny.trainer(UniMRSegModalityDropoutTrainer).initial_checkpoint() is None


def test_start_from_names_a_checkpoint_of_each_fold(folders, tmp_path):
    (tmp_path / "fold_0.pth").touch()
    made = tiny.trainer(UniMRSegStage2Trainer, start_from=str(tmp_path / "fold_{fold}.pth"))
    assert made.initial_checkpoint() == tmp_path / "fold_0.pth"
    (tmp_path / "fold_0.pth").unlink()
    with pytest.raises(UserError, match=r"stage2\.start_from names .*fold_0\.pth, which does not exist"):
        made.initial_checkpoint()


@pytest.mark.parametrize("trainer", [UniMRSegStage2Trainer, UniMRSegStage3Trainer])
def test_start_from_scratch_needs_no_checkpoint(trainer, folders):
    assert tiny.trainer(trainer, start_from="scratch").initial_checkpoint() is None


def test_stage_3_optimises_what_learns_only(folders):
    made = tiny.trainer(UniMRSegStage3Trainer)
    made.network = unet()
    made.network.freeze_encoder()
    optimizer, _ = made.configure_optimizers()
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    frozen = {id(parameter) for parameter in made.network.encoder.parameters()}
    everything = {id(parameter) for parameter in made.network.parameters()}
    assert learning == everything - frozen
    assert optimizer.param_groups[0]["lr"] == Stage3Config().initial_lr


@pytest.mark.parametrize("trainer", TRAINERS)
def test_only_stage_3_and_the_retrofit_have_adapters_and_a_frozen_encoder(trainer):
    plans = PlansManager(tiny.plans())
    network = trainer.build_network_architecture(plans, plans.get_configuration("3d_fullres"), 4, 3, True)
    frozen = [not parameter.requires_grad for parameter in network.encoder.parameters()]
    adapts = issubclass(trainer, UniMRSegStage3Trainer)
    assert (network.adapters is not None) is adapts
    assert all(frozen) if adapts else not any(frozen)
    assert network.train().encoder.training is not adapts


def cascaded(trainer: type) -> nnUNetTrainer:
    plans = tiny.plans()
    plans["continue_training"] = False
    plans["configurations"]["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return trainer(plans, "3d_cascade_fullres", 0, tiny.dataset_json(), torch.device("cpu"))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_cascade_gets_the_segmentations_of_stage_3(trainer, folders):
    made = cascaded(trainer)
    found = Path(made.folder_with_segs_from_previous_stage)
    of = UniMRSegStage3Trainer if trainer in STAGES else trainer
    assert found.parts[-3:] == (f"{of.__name__}__nnUNetPlans__3d_lowres", "predicted_next_stage", "3d_cascade_fullres")


def test_a_cascade_without_these_segmentations_is_one_error(folders, monkeypatch):
    made = cascaded(UniMRSegStage1Trainer)
    monkeypatch.setattr(made, "do_split", lambda: (["a", "b", "c"], ["d"]))
    found = Path(made.folder_with_segs_from_previous_stage)
    found.mkdir(parents=True)
    for case in "ad":
        (found / f"{case}.b2nd").touch()
    with pytest.raises(UserError) as error:
        made.on_train_start()
    assert f"Those of 2 cases, such as b, are not in {found}." in str(error.value)
    assert "unimrseg train 998 3d_lowres FOLD -p nnUNetPlans" in str(error.value)
