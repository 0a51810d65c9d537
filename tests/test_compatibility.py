"""What of nnU-Net works, without its commands: plans of every planner, formats, normalisers, loggers, torch.compile."""

from __future__ import annotations

import ast
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import tiny
import torch
from documentation import DOCS, read
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
    nnUNetPlannerResEncM,
    nnUNetPlannerResEncXL,
)
from nnunetv2.training.logging import nnunet_logger
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from test_planner import NAMES
from test_planner import dataset as brain_dataset  # noqa: F401 (a fixture)
from test_predictor_files import SEQUENTIAL
from test_reconstruct_formats import two_dimensional
from test_trainer_steps import ALL_VIEWS, TRAINERS, batch, changed, folders, make, parts, weights  # noqa: F401 (a fixture)
from test_trainer_steps import plans as three_stage_plans

from nnunetv2_unimrseg.data.preprocessing import TrainingCasePreprocessor
from nnunetv2_unimrseg.data.training_cases import check_raw_dataset
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.nnunet.paths import nnunet_folder
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

TABLE_ROW = re.compile(r"^\| (?!what |---)(.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)


def rows() -> list[tuple[str, str, str]]:
    return TABLE_ROW.findall(read(DOCS / "compatibility.md"))


@pytest.mark.parametrize(("what", "state", "tests"), rows(), ids=[row[0] for row in rows()])
def test_every_row_names_tests_that_exist(what, state, tests):
    assert state.startswith(("works", "refused"))
    named = re.findall(r"`(\w+\.py)::(\w+)`", tests)
    assert named, f"no test holds {what}"
    for file, function in named:
        path = Path(__file__).parent / file
        found = {node.name for node in ast.parse(read(path)).body if isinstance(node, ast.FunctionDef)}
        assert function in found, f"{file} has no {function}"


def test_the_table_has_a_row_for_everything():
    text = " ".join(what for what, *_ in rows())
    for word in (
        "`2d`", "`3d_lowres`", "`3d_fullres`", "cascade", "plain", "ResEnc M, L and XL", "anisotropic", "regions",
        "ignore label", "CT", "RGB", "`.nrrd`", "`.mha`", "`.tif`", "`.png`", "`\"dataset\"`", "2 to 10 modalities",
        "fold `all`", "five folds", "`--npz`", "ensemble", "best configuration", "postprocessing", "zip", "`--val`",
        "`--val_best`", "`--disable_checkpointing`", "Weights & Biases", "`-chk checkpoint_best.pth`", "spaces",
        "symbolic links", "read-only", "is the input folder", "lack modalities", "`nnUNet_compile=t`",
    ):  # fmt: skip
        assert word in text, word


# --- plans


PLANNERS = {
    "plain": ExperimentPlanner, "ResEnc M": nnUNetPlannerResEncM, "ResEnc L": nnUNetPlannerResEncL,
    "ResEnc XL": nnUNetPlannerResEncXL,
}  # fmt: skip


def make_trainer(trainer: type, plans: dict, configuration: str, names: Sequence[str]) -> nnUNetTrainer:
    """Return an initialised trainer that sees every view in every step, with few features and the smallest patch."""
    settings = plans["configurations"][configuration]
    arguments = settings["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]
    settings["patch_size"] = (2 * np.prod(arguments["strides"], axis=0)).tolist()
    settings["unimrseg"] = {trainer.section: {"cpu_precision": "float32", **ALL_VIEWS.get(trainer, {})}}
    cases = nnunet_folder("nnUNet_preprocessed") / plans["dataset_name"] / settings["data_identifier"]
    cases.mkdir(parents=True, exist_ok=True)
    (cases / "case.b2nd").touch()
    made = trainer(
        {**plans, "continue_training": False}, configuration, 0, tiny.dataset_json(names), torch.device("cpu")
    )
    made.initialize()
    return made


def check_learning(trainer: nnUNetTrainer) -> None:
    """Train a step with two random patches, the second of which lacks a modality."""
    before = weights(trainer.network)
    patch = trainer.configuration_manager.patch_size
    data = torch.randn(2, len(trainer.modalities), *patch)
    data[1, -1] = math.nan
    scales = trainer._get_deep_supervision_scales() or [[1] * len(patch)]
    target = [torch.randint(0, 3, (2, 1, *np.multiply(patch, scale).astype(int))) for scale in scales]
    assert np.isfinite(trainer.train_step({"data": data, "target": target, "keys": ["a", "b"]})["loss"])
    after = weights(trainer.network)
    assert all(value.isfinite().all() for value in after.values())
    learned = {"UniMRSegStage3Trainer": {"adapters", "decoder"}}
    learned["UniMRSegRetrofitTrainer"] = {"adapters", "incomplete_decoder"}
    assert parts(changed(before, after)) == learned.get(type(trainer).__name__, {"encoder", "decoder"})


@pytest.mark.parametrize("anisotropic", [False, True], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("name", PLANNERS)
def test_plans_of_every_planner_train(brain_dataset, name, anisotropic):  # noqa: F811
    if anisotropic:
        path = brain_dataset / "dataset_fingerprint.json"
        fingerprint = json.loads(path.read_text())
        fingerprint |= {"spacings": [[6.0, 1.0, 1.0]] * 100, "shapes_after_crop": [[24, 200, 180]] * 100}
        path.write_text(json.dumps(fingerprint))
    PLANNERS[name](7).plan_experiment()
    (path,) = brain_dataset.glob("*Plans.json")
    plans = json.loads(path.read_text())
    for configuration in ("3d_fullres", "2d"):
        arguments = plans["configurations"][configuration]["architecture"]["arch_kwargs"]
        assert ("n_blocks_per_stage" in arguments) == (name != "plain")
        strides = np.prod(arguments["strides"], axis=0)
        assert (len(set(strides)) > 1) == (anisotropic and configuration == "3d_fullres")
        check_learning(make_trainer(UniMRSegStage3Trainer, plans, configuration, NAMES))


@pytest.mark.parametrize("count", [2, 10])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_and_ten_modalities_train(trainer, count):
    made = three_stage_plans()
    settings = made["configurations"]["3d_fullres"]
    settings |= {"normalization_schemes": ["ZScoreNormalization"] * count, "use_mask_for_norm": [True] * count}
    check_learning(make_trainer(trainer, made, "3d_fullres", [f"M{number}" for number in range(count)]))


# --- files


READERS = {
    ".nii.gz": "SimpleITKIO", ".nii": "NibabelIO", ".nrrd": "SimpleITKIO", ".mha": "SimpleITKIO", ".tif": "Tiff3DIO",
    ".png": "NaturalImage2DIO",
}  # fmt: skip
NORMALISERS = ("CTNormalization", "ZScoreNormalization", "RGBTo01Normalization", "NoNormalization")


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(image[len(image) // 2]).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, image)
        case = re.sub(r"_\d{4}$", "", path.stem)
        path.with_name(f"{case}.json").write_text(json.dumps({"spacing": tiny.SPACING}))
    else:
        tiny.write(path, image)


@pytest.mark.parametrize("ending", READERS)
def test_every_format_is_checked_preprocessed_and_predicted(tmp_path, ending):
    """Training cases and new ones that lack a modality, with four normalisers that differ."""
    raw = tmp_path / "Dataset998_Tiny"
    rng = np.random.default_rng(0)
    for case in "abcd":
        for channel in range(4):
            if (case, channel) != ("b", 2):
                image = rng.integers(1, 200, tiny.SHAPE).astype(np.uint8)
                write_image(raw / "imagesTr" / f"{case}_{channel:04d}{ending}", image)
        write_image(raw / "labelsTr" / f"{case}{ending}", rng.integers(0, 3, tiny.SHAPE).astype(np.uint8))
    dataset_json = tiny.dataset_json(ending=ending)
    (raw / "dataset.json").write_text(json.dumps({**dataset_json, "numTraining": 4}))
    table = check_raw_dataset(raw, show_progress=False).table
    assert table["b"].available == ("CT", "PET", "T2") and len(table["a"].available) == 4

    planned = tiny.plans(
        NORMALISERS, reader=READERS[ending], spacing=(999.0, 1.0, 1.0) if ending == ".png" else (3, 2, 2)
    )
    if ending == ".png":
        planned = two_dimensional(planned) | {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    plans = PlansManager(planned)
    configuration = plans.get_configuration("3d_fullres")
    files = sorted(map(str, (raw / "imagesTr").glob(f"b_*{ending}")))
    label = str(raw / "labelsTr" / f"b{ending}")
    data, _, _ = TrainingCasePreprocessor(verbose=False).run_case(files, label, plans, configuration, dataset_json)
    assert [bool(np.isnan(channel).all()) for channel in data] == [False, False, True, False]
    assert np.isfinite(data[[0, 1, 3]]).all()

    network = build_network(configuration, 4, 3, False, adapters=False)
    predictor = UniMRSegPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, plans, configuration, [network.state_dict()], dataset_json, "UniMRSegStage2Trainer", (0, 1)
    )
    out = tmp_path / "out"
    predictor.predict_from_files(raw / "imagesTr", out, **SEQUENTIAL)
    reader = plans.image_reader_writer_class()
    segmentation, _ = reader.read_seg(str(out / f"b{ending}"))
    reference, _ = reader.read_seg(label)
    assert segmentation.shape == reference.shape and len(np.unique(segmentation)) > 1
    if READERS[ending] == "SimpleITKIO":
        written, given = sitk.ReadImage(str(out / f"b{ending}")), sitk.ReadImage(label)
        assert written.GetOrigin() == given.GetOrigin() and written.GetSpacing() == given.GetSpacing()


# --- what surrounds a training


def train_one_epoch(trainer: nnUNetTrainer) -> float:
    """Do what nnU-Net does in an epoch, with one step on random patches and without the plot; return the loss."""
    trainer.logger.plot_progress_png = lambda folder: None
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    output = trainer.train_step(batch())
    trainer.on_train_epoch_end([output])
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(batch())])
    trainer.on_epoch_end()
    return float(output["loss"])


class RecordedRun:
    """A run of Weights & Biases that keeps what it is told."""

    step = 0

    def __init__(self) -> None:
        self.config, self.summary, self.logged = {}, {}, {}

    def log(self, values: dict, step: int) -> None:
        for key, value in values.items():
            assert step == len(self.logged.setdefault(key, []))
            self.logged[key].append(float(value))


@pytest.mark.parametrize("trainer", TRAINERS)
def test_nnunets_logger_tells_weights_and_biases(monkeypatch, trainer):
    run = RecordedRun()
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    monkeypatch.setattr(nnunet_logger, "wandb", SimpleNamespace(init=lambda **_: run))
    made = make(trainer)
    for _ in range(2):
        train_one_epoch(made)
    json.dumps(run.config)
    assert run.config["configuration"] == "3d_fullres" and run.config["hparas"]["initial_lr"] == made.initial_lr
    own = {"val_l1", "val_ssim"} if trainer is UniMRSegStage1Trainer else {"dice_complete", "dice_incomplete"}
    assert own | {"train_losses", "val_losses", "lrs"} <= run.logged.keys()
    assert all(len(values) == 2 for values in run.logged.values())
    assert ("mean_fg_dice" in run.logged) == (trainer is not UniMRSegStage1Trainer)


@pytest.mark.parametrize("trainer", TRAINERS[:-1])
def test_compiled_networks_train_as_others(monkeypatch, tmp_path, trainer):
    """`torch.compile` traces the network and the Dice loss; a backend without code generation keeps it quick."""
    plain = make(trainer, seed=3)
    expected = train_one_epoch(plain)
    monkeypatch.setenv("nnUNet_compile", "t")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    compiled = make(trainer, seed=3)
    assert isinstance(compiled.network, torch._dynamo.OptimizedModule)
    assert train_one_epoch(compiled) == pytest.approx(expected, rel=1e-4)
    compiled.save_checkpoint(str(tmp_path / "compiled.pth"))
    plain.load_checkpoint(str(tmp_path / "compiled.pth"))
    trained = compiled.unwrapped_network.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in plain.network.state_dict().items())
