"""UniMRSegPredictor on files and arrays with a tiny untrained network, in this process."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor, enable_incomplete_cases
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.method.networks.build import build_network
from nnunetv2_unimrseg.nnunet.discovery import VARIABLE
from nnunetv2_unimrseg.nnunet.trained_model import findable_trainers, segmentation_checkpoints
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

SEQUENTIAL = {"num_processes_preprocessing": 0, "num_processes_segmentation_export": 0}


def tiny_network(seed: int, dataset_json: dict):
    torch.manual_seed(seed)
    plans_manager = PlansManager(tiny.plans())
    configuration = plans_manager.get_configuration("3d_fullres")
    outputs = plans_manager.get_label_manager(dataset_json).num_segmentation_heads
    return plans_manager, configuration, build_network(configuration, 4, outputs, False, adapters=False)


def make_predictor(dataset_json: dict | None = None, seeds=(0,), mirrored=(0, 1)) -> UniMRSegPredictor:
    dataset_json = dataset_json or tiny.dataset_json()
    parameters = [tiny_network(seed, dataset_json)[2].state_dict() for seed in seeds]
    plans_manager, configuration, network = tiny_network(0, dataset_json)
    predictor = UniMRSegPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        network, plans_manager, configuration, parameters, dataset_json, "UniMRSegStage2Trainer", mirrored
    )
    return predictor


@pytest.fixture(scope="module")
def predictor():
    return make_predictor()


@pytest.fixture
def folder(tmp_path):
    """Cases a (complete), b (CT and T1), c (T2), d (complete, PET constant)."""
    data = tiny.image(1)
    constant = data.copy()
    constant[1] = 12
    for name, array, channels in (("a", data, range(4)), ("b", data, (0, 2)), ("c", data, (3,)), ("d", constant, None)):
        tiny.write_case(tmp_path / "in", name, array, channels)
    return tmp_path / "in"


def read(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def probabilities(output, name) -> np.ndarray:
    return np.load(output / f"{name}.npz")["probabilities"]


def names_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_manual_initialization_lets_absent_files_be_read(predictor):
    assert predictor.configuration_manager.preprocessor_class is UniMRSegPreprocessor


def test_a_folder_of_mixed_cases(predictor, folder, tmp_path, capsys):
    out = tmp_path / "new" / "out"
    predictor.predict_from_files(str(folder), str(out), save_probabilities=True, **SEQUENTIAL)
    assert [name for name in names_in(out) if name.endswith(tiny.ENDING)] == [f"{name}.nii.gz" for name in "abcd"]
    report = json.loads((out / "modalities.json").read_text())
    assert report["a"] == {"available": list(tiny.NAMES), "missing": []}
    assert report["b"] == {"available": ["CT", "T1"], "missing": ["PET", "T2"]}
    assert report["d"] == {"available": ["CT", "T1", "T2"], "missing": ["PET"]}
    assert "c: available: T2, missing: CT, PET, T1" in capsys.readouterr().out
    (folder / "d_0001.nii.gz").unlink()
    predictor.predict_from_files(str(folder), str(tmp_path / "absent"), save_probabilities=True, **SEQUENTIAL)
    assert np.array_equal(probabilities(out, "d"), probabilities(tmp_path / "absent", "d"))
    assert not np.array_equal(probabilities(out, "d"), probabilities(out, "a"))
    written = sitk.ReadImage(str(out / "c.nii.gz"))
    given = sitk.ReadImage(str(folder / "c_0003.nii.gz"))
    assert written.GetOrigin() == given.GetOrigin() and written.GetSpacing() == given.GetSpacing()


@pytest.mark.parametrize(
    "sequential", [True, pytest.param(False, marks=pytest.mark.integration)], ids=["sequential", "parallel"]
)
def test_modalities_make_other_files_as_if_absent(predictor, folder, tmp_path, sequential):
    processes = SEQUENTIAL if sequential else dict.fromkeys(SEQUENTIAL, 1)
    shutil.copytree(folder, tmp_path / "few")
    for path in (tmp_path / "few").glob("*_000[12].nii.gz"):
        path.unlink()
    predictor.predict_from_files(folder, tmp_path / "chosen", modalities=("t2", "CT"), **processes)
    predictor.predict_from_files(tmp_path / "few", tmp_path / "expected", **SEQUENTIAL)
    for name in "abcd":
        assert np.array_equal(
            read(tmp_path / "chosen" / f"{name}.nii.gz"), read(tmp_path / "expected" / f"{name}.nii.gz")
        )
    report = json.loads((tmp_path / "chosen" / "modalities.json").read_text())
    assert report["a"] == {"available": ["CT", "T2"], "missing": ["PET", "T1"]}
    recorded = json.loads((tmp_path / "chosen" / "predict_from_raw_data_args.json").read_text())
    assert recorded["overwrite"] is True


def test_lists_of_files_and_returned_segmentations(predictor, folder, tmp_path):
    cases = [[folder / "b_0002.nii.gz", folder / "b_0000.nii.gz"], [folder / "c_0003.nii.gz"]]
    outputs = [tmp_path / "x" / "first", tmp_path / "y" / "second"]
    predictor.predict_from_files(cases, outputs, **SEQUENTIAL)
    assert names_in(tmp_path / "y") == ["modalities.json", "second.nii.gz"]
    report = json.loads((tmp_path / "x" / "modalities.json").read_text())
    assert report == {"first": {"available": ["CT", "T1"], "missing": ["PET", "T2"]}}
    returned = predictor.predict_from_files_sequential(cases, None)
    assert np.array_equal(returned[1], read(tmp_path / "y" / "second.nii.gz"))


def test_parts_and_continuing(predictor, folder, tmp_path, capsys):
    out = tmp_path / "out"
    for part_id, expected in ((1, "bd"), (0, "abcd")):
        predictor.predict_from_files(folder, out, num_parts=2, part_id=part_id, **SEQUENTIAL)
        assert sorted(json.loads((out / "modalities.json").read_text())) == list(expected)
        assert [path.name[0] for path in sorted(out.glob("*.nii.gz"))] == list(expected)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    (out / "b.nii.gz").unlink()
    (folder / "a_0000.nii.gz").write_bytes(b"")
    capsys.readouterr()
    predictor.predict_from_files(folder, out, overwrite=False, **SEQUENTIAL)
    after = {path: path.stat().st_mtime_ns for path in out.glob("*.nii.gz")}
    assert {path.name for path in before if before[path] != after[path]} == {"b.nii.gz"}
    assert sorted(json.loads((out / "modalities.json").read_text())) == list("abcd")
    assert "a: available" not in capsys.readouterr().out
    assert (
        predictor.predict_from_files([[folder / "b_0000.nii.gz"]], [out / "b"], num_parts=2, part_id=1, **SEQUENTIAL)
        == []
    )


def test_several_folds_are_averaged(folder):
    files = [[folder / "b_0000.nii.gz"]]
    results = [
        make_predictor(seeds=seeds).predict_from_files(files, None, save_probabilities=True, **SEQUENTIAL)[0][1]
        for seeds in ((0,), (1,), (0, 1))
    ]
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(results[2], results[0]) and not np.array_equal(results[2], results[1])


def test_regions(folder, tmp_path):
    dataset_json = tiny.dataset_json()
    dataset_json["labels"] = {"background": 0, "whole": [1, 2], "core": 2}
    dataset_json["regions_class_order"] = [1, 2]
    make_predictor(dataset_json).predict_from_files(folder, tmp_path / "out", save_probabilities=True, **SEQUENTIAL)
    assert probabilities(tmp_path / "out", "c").shape == (2, *tiny.SHAPE)
    assert set(np.unique(read(tmp_path / "out" / "c.nii.gz"))) <= {0, 1, 2}


def test_nothing_is_written_when_one_case_is_bad(predictor, folder, tmp_path):
    (folder / "b_0002.nii.gz").write_bytes((folder / "b_0002.nii.gz").read_bytes()[:400])
    tiny.write(folder / "stray.nii.gz", tiny.image()[0])
    with pytest.raises(UserError) as caught:
        predictor.predict_from_files(folder, tmp_path / "out", **SEQUENTIAL)
    assert "2 problems" in str(caught.value)
    assert not (tmp_path / "out").exists()


def error_of(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def test_arguments_that_cannot_be_followed(predictor, folder, tmp_path):
    def error(source=folder, output=tmp_path / "out", **keywords):
        return error_of(predictor.predict_from_files, source, output, **{**SEQUENTIAL, **keywords})

    assert "from 0 to num_parts - 1 = 1" in error(num_parts=2, part_id=2)
    assert "must be at least 0" in error(num_processes_preprocessing=-1)
    assert "Did you mean 'PET'?" in error(modalities=("PTE",))
    assert "channel is 3" in error(modalities=(4,))
    assert "1 cases and 2 output files" in error([[folder / "c_0003.nii.gz"]], ["x", "y"])
    twice = [[folder / "c_0003.nii.gz"], [shutil.copy(folder / "c_0003.nii.gz", tmp_path)]]
    assert "would both be segmented into 'c.nii.gz'" in error(twice)
    nameless = [
        [tiny.write(tmp_path / f"{name}.nii.gz", channel) for name, channel in zip("wxyz", tiny.image(), strict=True)]
    ]
    assert "its segmentation's name is not known" in error(nameless)
    assert "nothing" in error_of(predictor.predict_from_files, twice, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("output", ["in", "in/out", "."])
def test_input_and_output_must_lie_apart(predictor, folder, tmp_path, output):
    before = names_in(folder)
    flat = [folder / "b_0000.nii.gz", folder / "b_0002.nii.gz"]
    for source in (folder, [flat]):
        if (source, output) == ([flat], "in/out"):  # beside files that were named one by one
            continue
        message = error_of(predictor.predict_from_files, source, tmp_path / output, **SEQUENTIAL)
        assert "would be taken for input" in message
    message = error_of(predictor.predict_from_files, [flat], [str(flat[0]).removesuffix(tiny.ENDING)], **SEQUENTIAL)
    assert f"is the input file {flat[0]}, which it would replace" in message
    assert f'Give [["{flat[0]}", "{flat[1]}"]]' in error_of(predictor.predict_from_files, flat, tmp_path / "out")
    assert names_in(folder) == before and names_in(tmp_path) == ["in"]


def test_every_subset_by_name_equals_the_files(predictor, folder):
    data = tiny.image(1)
    properties = {"spacing": list(tiny.SPACING)}
    for subset in itertools.product((False, True), repeat=4):
        if not any(subset):
            continue
        channels = [channel for channel in range(4) if subset[channel]]
        names = [tiny.NAMES[channel] for channel in channels]
        files = [[folder / f"a_{channel:04d}.nii.gz" for channel in channels]]
        ((_, expected),) = predictor.predict_from_files(files, None, save_probabilities=True, **SEQUENTIAL)
        before = data.copy()
        for image in (data, data[channels]):
            _, found = predictor.predict_single_npy_array(image, dict(properties), None, None, True, available=names)
            assert np.array_equal(found, expected)
        assert np.array_equal(data, before)


@pytest.mark.integration
def test_lists_of_arrays(predictor):
    data = tiny.image(1)
    properties = [{"spacing": list(tiny.SPACING)} for _ in range(2)]
    each = predictor.predict_from_list_of_npy_arrays(
        [data[[2]], data[[3, 0]]], None, properties, None, 1, False, 1, available=[["T1"], ["T2", "CT"]]
    )
    for found, image, names in zip(each, (data, data), (["T1"], ["CT", "T2"]), strict=True):
        alone = predictor.predict_single_npy_array(image, {"spacing": list(tiny.SPACING)}, available=names)
        assert np.array_equal(found, alone)
    message = error_of(
        predictor.predict_from_list_of_npy_arrays, [data, data], None, properties, None, available=[["T1"]]
    )
    assert "2 images and 1 lists" in message


# --- folders of trained models ---------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path):
    """A model folder as nnU-Net leaves it, with an untrained network."""
    folder = tmp_path / "UniMRSegStage2Trainer__nnUNetPlans__3d_fullres"
    for fold in ("0", "all"):
        (folder / f"fold_{fold}").mkdir(parents=True)
        write_checkpoint(folder, fold)
    (folder / "plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    return folder


def write_checkpoint(folder, fold="0", trainer=TRAINER_OF_SECTION["stage2"], plans=None, configuration="3d_fullres"):
    checkpoint = {
        "network_weights": tiny_network(0, tiny.dataset_json())[2].state_dict(),
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1),
        "init_args": {"configuration": configuration, "plans": plans or tiny.plans()},
    }
    torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")


def read_checkpoints(folder, folds=(0,), name="checkpoint_final.pth"):
    return list(segmentation_checkpoints(folder, folds, name))


def test_a_trained_model_is_loaded_without_any_variable_set(model, folder, tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    predictor = UniMRSegPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, "all"))
    assert VARIABLE not in os.environ
    assert len(predictor.list_of_parameters) == 2
    predictor.predict_from_files(folder, tmp_path / "out", **SEQUENTIAL)
    make_predictor().predict_from_files(folder, tmp_path / "expected", **SEQUENTIAL)
    assert np.array_equal(read(tmp_path / "out" / "b.nii.gz"), read(tmp_path / "expected" / "b.nii.gz"))


def test_folds_are_found_when_none_are_given(model):
    predictor = UniMRSegPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(model), None)
    assert len(predictor.list_of_parameters) == 1


def test_findable_trainers_restores_the_variable(monkeypatch):
    monkeypatch.setenv(VARIABLE, "/mine")
    with findable_trainers():
        assert os.environ[VARIABLE].startswith(f"/mine{os.pathsep}")
        assert "nnunet_ext" in os.environ[VARIABLE]
    assert os.environ[VARIABLE] == "/mine"


def test_what_cannot_be_loaded_is_one_error(model):
    def error(folds=(0,), name="checkpoint_final.pth", folder=model):
        return error_of(read_checkpoints, folder, folds, name)

    wrong = model.with_name("UniMRSegStage3Trainer__nnUNetPlans__3d_fullres")
    assert f"Did you mean '{model.name}'?" in error(folder=wrong)
    message = error(folds=(0, 1, 2))
    assert "for fold 1, 2" in message and "-f 0 all" in message
    assert "Did you mean 'checkpoint_final.pth'?" in error(name="checkpoint_finl.pth")
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    checkpoint.write_bytes(checkpoint.read_bytes()[:2000])
    message = error()
    assert str(checkpoint) in message and "cannot be read" in message
    (model / "plans.json").unlink()
    assert "plans.json" in error()
    for fold in ("0", "all"):
        (model / f"fold_{fold}" / "checkpoint_final.pth").unlink()
    assert "No fold has been trained; train one first (`unimrseg train`)." in error()


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (TRAINER_OF_SECTION["stage1"], "stage-1 model"),
        ("nnUNetTrainer", "needs every modality. Train what it lacks, with the same plans (-p): `unimrseg train"),
        ("NobodysTrainer", "which nnU-Net cannot find"),
    ],
)
def test_models_that_cannot_segment_with_missing_modalities(model, trainer, message):
    write_checkpoint(model, trainer=trainer)
    assert message in error_of(read_checkpoints, model)


def test_a_checkpoint_of_other_plans(model):
    write_checkpoint(model, plans=tiny.plans(patch_size=(8, 8, 8)))
    assert "patch_size: [8, 8, 8] in the checkpoint" in error_of(read_checkpoints, model)
    write_checkpoint(model, configuration="3d_lowres")
    assert "no configuration '3d_lowres'" in error_of(read_checkpoints, model)


def test_a_cascade_needs_the_previous_stage(folder, tmp_path):
    predictor = make_predictor()
    predictor.configuration_manager.configuration["previous_stage"] = "3d_lowres"
    assert "3d_lowres" in error_of(predictor.predict_from_files, folder, tmp_path / "out", **SEQUENTIAL)
    message = error_of(
        predictor.predict_from_files,
        folder,
        tmp_path / "out",
        folder_with_segs_from_prev_stage=str(tmp_path / "previous"),
        **SEQUENTIAL,
    )
    assert "4 problems" in message and "a.nii.gz is not there" in message


def test_the_stock_predictor_reads_absent_files_through_the_same_object(folder):
    """What nnU-Net's own command does: the network is built first, then this very configuration preprocesses."""
    plans_manager = PlansManager(tiny.plans())
    configuration = plans_manager.get_configuration("3d_fullres")
    enable_incomplete_cases(configuration)
    preprocessor = plans_manager.get_configuration("3d_fullres").preprocessor_class(verbose=False)
    data = preprocessor.run_case(
        [str(folder / "c_0003.nii.gz")], None, plans_manager, configuration, tiny.dataset_json()
    )[0]
    assert np.isnan(data[:3]).all() and np.isfinite(data[3]).all()


def test_the_stock_predictor_refuses_a_case_with_a_scan_that_would_go_unnoticed(folder, predictor, tmp_path):
    """nnU-Net lists the folder itself and passes over what is no file of the ending."""
    plans_manager = PlansManager(tiny.plans())
    configuration = plans_manager.get_configuration("3d_fullres")
    enable_incomplete_cases(configuration)
    files = [str(folder / "c_0003.nii.gz")]
    arguments = None, plans_manager, configuration, tiny.dataset_json()
    preprocessor = configuration.preprocessor_class(verbose=False)
    (folder / "c_0000.nii.gz").symlink_to("/unmounted/c_0000.nii.gz")
    (folder / "c_0002.NII").touch()
    (folder / "b_0001.nii").touch()
    message = error_of(preprocessor.run_case, files, *arguments)
    assert message.startswith("Case 'c' cannot be used:\n") and "b_0001" not in message
    assert "c_0000.nii.gz: is a link to /unmounted/c_0000.nii.gz" in message and "c_0002.NII: ends with" in message
    assert pickle.loads(pickle.dumps(configuration)).folder_was_checked is False
    checked = pickle.loads(pickle.dumps(predictor.configuration_manager))
    assert checked.folder_was_checked is True
    assert preprocessor.run_case(files, None, plans_manager, checked, tiny.dataset_json())[0].shape[0] == 4
    message = error_of(predictor.predict_from_files, folder, None, modalities=("CT", "PET"), **SEQUENTIAL)
    assert "b_0001.nii: ends" in message and "c_0000.nii.gz: is a link" in message and "c_0002" not in message
    predictor.predict_from_files([files], tmp_path / "out", **SEQUENTIAL)
    assert (tmp_path / "out" / "c.nii.gz").is_file()
