"""`evaluate` on tiny untrained networks, in this process: what is predicted, shared, continued and refused."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
import tiny
import torch
import trained
from inference_options import with_options
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.data import subset_preprocessing
from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor, enable_incomplete_cases
from nnunetv2_unimrseg.data.subset_preprocessing import preprocess_subsets
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation import prediction
from nnunetv2_unimrseg.evaluation.evaluate import evaluate as evaluate_with_options
from nnunetv2_unimrseg.evaluation.in_checkpoint import KEY
from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
from nnunetv2_unimrseg.modalities import Modalities, all_subsets
from nnunetv2_unimrseg.reports.evaluation import write_report
from nnunetv2_unimrseg.utils.threads import prefetch

evaluate = with_options(evaluate_with_options)
QUICK = {"device": "cpu", "use_mirroring": False, "store": False, "show_progress": False}
INLINE = {"num_threads_preprocessing": 0, "num_threads_export": 0}
NAMES = Modalities(tiny.NAMES)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """nnU-Net's folders with four cases, two of which fold 0 validates and one fold 1."""
    trained.write_dataset(tmp_path, ["a", "b", "c", "d"], [["a", "b"], ["c"]])
    for variable in ("raw", "preprocessed", "results"):
        (tmp_path / variable).mkdir(exist_ok=True)
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def model(root):
    return trained.write_model(root / "results", folds=("0", "1"))


def array(path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("use_mask", [True, False])
@pytest.mark.parametrize("normalisers", [tiny.NORMALISERS, ("ZScoreNormalization",) * 4])
def test_sharing_work_changes_no_bit(tmp_path, monkeypatch, use_mask, normalisers):
    image = tiny.image(3)
    files = tiny.write_case(tmp_path, "case", image)
    plans_manager = PlansManager(tiny.plans(normalisers, use_mask=use_mask))
    configuration = plans_manager.get_configuration("3d_fullres")
    enable_incomplete_cases(configuration)
    subsets = {NAMES.describe(subset): subset for subset in all_subsets(4)}
    calls = []
    whole = UniMRSegPreprocessor.run_case_npy
    monkeypatch.setattr(UniMRSegPreprocessor, "run_case_npy", lambda self, *args: calls.append(1) or whole(self, *args))
    reader = plans_manager.image_reader_writer_class()
    raw, properties = reader.read_images(files)
    prepared = list(preprocess_subsets(raw, properties, subsets, plans_manager, configuration, tiny.dataset_json()))
    assert len(calls) < len(subsets)
    assert {name for name, *_ in prepared} == set(subsets)
    for name, data, of_case in prepared:
        kept = [file for file, available in zip(files, subsets[name], strict=True) if available]
        alone, _, expected = UniMRSegPreprocessor(verbose=False).run_case(
            kept, None, plans_manager, configuration, tiny.dataset_json()
        )
        assert np.array_equal(data.numpy(), alone, equal_nan=True), name
        assert of_case["bbox_used_for_cropping"] == expected["bbox_used_for_cropping"]
        assert of_case["available_modalities"] == expected["available_modalities"]


def test_one_preprocessing_where_nothing_depends_on_the_subset(monkeypatch):
    image = np.random.default_rng(0).normal(100, 5, (4, *tiny.SHAPE)).astype(np.float32)
    groups = subset_preprocessing._group_by_crop(image, {NAMES.describe(s): s for s in all_subsets(4)}, [True] * 4)
    assert len(groups) == 1 and len(groups[0]) == 15


@pytest.mark.parametrize("threads", [{}, INLINE])
def test_every_subset_is_predicted_as_if_the_files_were_absent(model, root, tmp_path, threads):
    evaluation = evaluate(model, [0], **QUICK, **threads)
    scores = evaluation.scores
    assert len(scores) == 2 * 15 * 2
    assert set(scores["case"]) == {"a", "b"} and set(scores["label"]) == {"whole", "core"}
    folder = model / "evaluation_folds_0"
    assert (evaluation.folder, evaluation.failures, evaluation.unfinished) == (folder, [], 0)
    predictor = UniMRSegPredictor(device=torch.device("cpu"), allow_tqdm=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    shutil.copytree(root / "raw" / trained.DATASET / "imagesTr", tmp_path / "images")
    for path in {*tmp_path.glob("images/*_000[13]*"), *tmp_path.glob("images/[cd]_*")}:
        path.unlink()
    predictor.predict_from_files(tmp_path / "images", tmp_path / "out", False, True, 0, 0)
    for case in "ab":
        expected = array(tmp_path / "out" / f"{case}.nii.gz")
        assert np.mean(expected != array(folder / "predictions" / "CT+T1" / f"{case}.nii.gz")) < 1e-3
        assert len(np.unique(expected)) > 1
    pd.testing.assert_frame_equal(pd.read_csv(folder / "subsets.csv", dtype={"fold": str}), scores, check_exact=False)


def test_each_fold_predicts_its_own_cases(model):
    scores = evaluate(model, [0, 1], subsets=["complete"], **QUICK).scores
    assert scores.groupby("case")["fold"].first().to_dict() == {"a": "0", "b": "0", "c": "1"}
    alone = evaluate(model, ["1"], subsets=["complete"], **QUICK).scores
    both = scores[scores["fold"] == "1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)


def test_cases_of_a_folder_are_predicted_by_all_folds_together(model, tmp_path):
    trained.write_cases(tmp_path / "images", tmp_path / "labels", ["x", "y"])
    (tmp_path / "images" / "x_0001.nii.gz").unlink()
    scores = evaluate(
        model, [0, 1], images=tmp_path / "images", labels=tmp_path / "labels", output=tmp_path / "out", **QUICK
    ).scores
    assert set(scores["fold"]) == {"0+1"}
    counts = scores[scores["label"] == "whole"].groupby("case")["subset"].count()
    assert counts.to_dict() == {"x": 7, "y": 15}
    assert not scores[scores["case"] == "x"]["subset"].str.contains("PET").any()


def test_a_constant_image_counts_as_lacking(model, tmp_path):
    trained.write_cases(tmp_path / "images", tmp_path / "labels", ["x"])
    tiny.write(tmp_path / "images" / "x_0001.nii.gz", np.full(tiny.SHAPE, 4, np.float32))
    evaluation = evaluate(
        model, [0], images=tmp_path / "images", labels=tmp_path / "labels", output=tmp_path / "out", **QUICK
    )
    assert evaluation.scores["subset"].nunique() == 7
    assert evaluation.unfinished == 0


def test_an_interrupted_evaluation_goes_on(model, monkeypatch):
    folder = model / "evaluation_folds_0"
    predict = UniMRSegPredictor.predict_logits_from_preprocessed_data
    calls = []

    def interrupted(self, data):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(self, data)

    monkeypatch.setattr(UniMRSegPredictor, "predict_logits_from_preprocessed_data", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, [0], subsets=["single"], **QUICK, **INLINE)
    assert not (folder / "summary.json").exists()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("scores/*/*.json")}
    assert len(done) == 3
    scores = evaluate(model, [0], subsets=["single"], **QUICK, **INLINE).scores
    assert len(calls) == 4 + 5 and len(scores) == 2 * 4 * 2
    assert {path: path.stat().st_mtime_ns for path in done} == done
    evaluate(model, [0], subsets=["single", "complete"], empty="nan", **QUICK)
    assert len(calls) == 9 + 2
    assert json.loads((folder / "summary.json").read_text())["conventions"]["empty"] == "nan"


def test_changed_files_are_evaluated_again(model, root):
    evaluate(model, [0], subsets=["complete"], **QUICK)
    label = root / "raw" / trained.DATASET / "labelsTr" / "a.nii.gz"
    before = evaluate(model, [0], subsets=["complete"], **QUICK).scores
    tiny.write(label, np.ones(tiny.SHAPE, np.uint8))
    after = evaluate(model, [0], subsets=["complete"], **QUICK).scores
    different = (before["reference_ml"] != after["reference_ml"]).groupby(before["case"]).any()
    assert different.to_dict() == {"a": True, "b": False}


def test_parts_share_one_folder(model):
    first = evaluate(model, [0], subsets=["single"], num_parts=2, part_id=0, **QUICK)
    assert set(first.scores["case"]) == {"a"} and first.unfinished == 4
    assert not (model / "evaluation_folds_0" / "summary.json").exists()
    second = evaluate(model, [0], subsets=["single"], num_parts=2, part_id=1, **QUICK)
    assert set(second.scores["case"]) == {"a", "b"} and second.unfinished == 0
    assert (model / "evaluation_folds_0" / "summary.json").is_file()


def test_a_case_that_fails_does_not_stop_the_others(model, root, capsys):
    image = root / "raw" / trained.DATASET / "imagesTr" / "a_0002.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:2000])
    arguments = ["evaluate", "-m", str(model), "-f", "0", "--subsets", "single", "-device", "cpu", "--disable_tta",
                 "--no_report", "--disable_progress_bar"]  # fmt: skip
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 1
    told = capsys.readouterr()
    assert "could not be predicted and scored (4)" in told.err and "a_0002.nii.gz" in told.err
    folder = model / "evaluation_folds_0"
    assert set(pd.read_csv(folder / "subsets.csv")["case"]) == {"b"}
    assert {entry["case"] for entry in json.loads((folder / "summary.json").read_text())["failures"]} == {"a"}
    image.write_bytes(whole)
    assert main(arguments) == 0
    assert "mean" in capsys.readouterr().out
    assert set(pd.read_csv(folder / "subsets.csv")["case"]) == {"a", "b"}


def test_a_stock_model_sees_zeros_in_place_of_what_is_missing(root, monkeypatch):
    model = trained.write_model(root / "results", trained.STOCK)
    seen = []
    predict = torch.nn.Module.__call__

    def spy(self, *args, **kwargs):
        if type(self).__name__ == "PlainConvUNet":
            seen.append(args[0].clone())
        return predict(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", spy)
    scores = evaluate(model, [0], subsets=["PET"], **{**QUICK, "store": True}).scores
    assert len(scores) == 4 and seen
    for data in seen:
        assert torch.isfinite(data).all()
        assert data[:, 1].any() and not data[:, [0, 2, 3]].any()
    summary = json.loads((model / "evaluation_folds_0" / "summary.json").read_text())
    assert "zero-filled after normalisation" in summary["model"]["missing_modalities"]
    checkpoint = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert KEY not in checkpoint


def test_the_result_is_stored_in_the_checkpoints(model):
    evaluate(model, [0, 1], subsets=["single"], **{**QUICK, "store": True})
    for fold in "01":
        assert KEY in torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
    evaluate(model, [0, 1], subsets=["single"], **QUICK)


def error_of(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as error:
        evaluate(*arguments, **{**QUICK, **keywords})
    return str(error.value)


def test_what_cannot_be_evaluated_is_one_error_before_anything_is_written(model, root, tmp_path):
    before = sorted(path for path in root.rglob("*"))
    assert "Did you mean 'brats'?" in error_of(model, [0], empty="brat")
    assert "Unknown modality 'MR'" in error_of(model, [0], subsets=["MR"])
    assert "step size" in error_of(model, [0], step_size=0)
    assert "part_id" in error_of(model, [0], num_parts=2, part_id=2)
    assert "both" in error_of(model, [0], images=tmp_path)
    assert "Name a folder (-o)" in error_of(model, [0], images=tmp_path, labels=tmp_path)
    assert "no checkpoint_final.pth for fold 3" in error_of(model, [3])
    assert "no folder of labels" in error_of(model, [0], images=tmp_path, labels=root / "no", output=root / "x")
    assert sorted(path for path in root.rglob("*")) == before


def test_labels_that_are_missing_or_of_another_shape_are_all_named(model, root):
    labels = root / "raw" / trained.DATASET / "labelsTr"
    (labels / "a.nii.gz").unlink()
    tiny.write(labels / "b.nii.gz", np.zeros((5, 6, 7), np.uint8))
    message = error_of(model, [0])
    assert "2 problems" in message
    assert f"there is no file {labels / 'a.nii.gz'}" in message
    assert "7 x 6 x 5 voxels" in message and "18 x 16 x 14" in message


def test_folds_that_are_not_known(model, root):
    os.remove(root / "preprocessed" / trained.DATASET / "splits_final.json")
    assert "It is not known which cases fold 0 was validated with" in error_of(model, [0])


def test_a_folder_of_another_evaluation_is_not_touched(model, root):
    evaluate(model, [0], subsets=["complete"], **QUICK)
    folder = model / "evaluation_folds_0"
    before = (folder / "summary.json").read_bytes()
    message = error_of(model, [0], use_mirroring=True)
    assert "prediction.mirroring: False there, True now" in message and "--overwrite" in message
    trained.write_model(root / "results", folds=("1",))
    shutil.copy(model / "fold_1" / "checkpoint_final.pth", model / "fold_0" / "checkpoint_final.pth")
    assert "model.weights_sha256.0" in error_of(model, [0])
    assert (folder / "summary.json").read_bytes() == before
    evaluate(model, [0], subsets=["complete"], **{**QUICK, "overwrite": True})
    assert (folder / "summary.json").read_bytes() != before
    assert "is not empty and holds no evaluation" in error_of(model, [0], output=root / "raw")


def test_fold_all_is_said_to_be_evaluated_on_its_training_cases(root, capsys):
    model = trained.write_model(root / "results")
    shutil.copytree(model / "fold_0", model / "fold_all")
    scores = evaluate(model, ["all"], subsets=["complete"], **QUICK).scores
    assert set(scores["case"]) == set("abcd")
    assert "WARNING: these are the training cases" in capsys.readouterr().out
    assert "training cases" in json.loads((model / "evaluation_folds_all" / "summary.json").read_text())["source"]


@pytest.mark.parametrize("where", ["prediction", "scoring", "label"])
def test_whatever_goes_wrong_with_a_case_is_told_at_the_end(model, root, monkeypatch, where):
    def broken(*args, **kwargs):
        raise IndexError("some library's bug")

    if where == "prediction":
        monkeypatch.setattr(UniMRSegPredictor, "predict_logits_from_preprocessed_data", broken)
    if where == "scoring":
        monkeypatch.setattr(prediction, "score_segmentation", broken)
    if where == "label":
        label = root / "raw" / trained.DATASET / "labelsTr" / "a.nii.gz"
        monkeypatch.setattr(prediction, "prefetch", lambda *args: label.unlink() or prefetch(*args))
        evaluation = evaluate(model, [0], subsets=["complete"], **QUICK)
        assert {failure["case"] for failure in evaluation.failures} == {"a"}
        assert set(evaluation.scores["case"]) == {"b"}
    else:
        assert "some library's bug" in error_of(model, [0], subsets=["complete"])


def test_folders_that_cannot_be(model, root):
    (root / "file").write_text("")
    assert f"{root / 'file'} is a file, no folder. Give another" in error_of(model, [0], output=root / "file")
    message = error_of(model, [0], output=root / "file" / "below")
    assert f"cannot be made: {root / 'file'} is a file, no folder. Give another output folder (-o)." in message
    assert "Remove the folder by hand" in error_of(model, [0], overwrite=True, num_parts=2)


def test_a_label_called_mean_is_refused(root):
    names = {**tiny.dataset_json(), "labels": {"background": 0, "mean": 1}}
    model = trained.write_model(root / "results", dataset_json=names)
    assert "A label is called 'mean'" in error_of(model, [0])


def test_references_with_other_values_than_the_labels_are_refused(model, root):
    labels = root / "raw" / trained.DATASET / "labelsTr"
    tiny.write(labels / "a.nii.gz", np.full(tiny.SHAPE, 7, np.uint8))
    (labels / "b.nii.gz").write_bytes((labels / "b.nii.gz").read_bytes()[:200])
    message = error_of(model, [0])
    assert "2 problems" in message and "holds the value 7; the dataset's labels are 0, 1, 2" in message
    assert "b.nii.gz: cannot be used: it is truncated" in message


def test_a_reference_that_lies_elsewhere_is_told(model, root, capsys):
    label = root / "raw" / trained.DATASET / "labelsTr" / "a.nii.gz"
    tiny.write(label, array(label), origin=(50, 0, 0))
    evaluate(model, [0], subsets=["complete"], **QUICK)
    told = capsys.readouterr().out
    assert "WARNING: case 'a'" in told and "differ in origin" in told and "'b'" not in told


def test_no_report_of_earlier_scores_is_left(model):
    folder = model / "evaluation_folds_0"
    evaluation = evaluate(model, [0], subsets=["single"], **QUICK)
    write_report(evaluation, evaluation.folder)
    assert (folder / "report.html").is_file() and (folder / "plots").is_dir()
    evaluate(model, [0], subsets=["complete"], **QUICK)
    assert not (folder / "report.html").exists() and not (folder / "plots").exists()
    assert (folder / "subsets.csv").is_file()
