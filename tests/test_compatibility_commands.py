"""What of nnU-Net works, through its commands: validation, best configuration, ensembles, zip files, odd names."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import Workspace
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from test_predict_commands import CONTROL, NOTHING_ELSE, STAGE3, predict, same, segmentations

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.evaluation.files import read_evaluation
from nnunetv2_unimrseg.evaluation.in_checkpoint import KEY

pytestmark = pytest.mark.integration

FOLDS = (0, 1)


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory) -> Workspace:
    """Stage 3 and the control, validated with `--val --npz`, twice as if for two folds; best checkpoints differ."""
    root = tmp_path_factory.mktemp("compatible") / "nnunet"
    shutil.copytree(workspace.root, root)
    made = Workspace(root)
    for seed, trainer in enumerate((STAGE3, CONTROL)):
        model = made.model_folder(trainer)
        for other in set(model.glob("fold_*")) - {model / "fold_0"}:
            shutil.rmtree(other)
        shutil.rmtree(model / "fold_0" / "validation")
        final = model / "fold_0" / "checkpoint_final.pth"
        content = torch.load(final, weights_only=False)
        weights = content["network_weights"]
        head = max(key for key in weights if key.startswith("decoder.seg_layers.") and key.endswith(".weight"))
        weights[head] = torch.randn(weights[head].shape, generator=torch.Generator().manual_seed(seed))
        content.pop(KEY, None)  # an evaluation that another test stored is not of these weights
        torch.save(content, final.with_name("checkpoint_best.pth"))
        made.train(trainer, "--val", "--npz")
        shutil.copytree(model / "fold_0", model / "fold_1")
    return made


@pytest.fixture(scope="module")
def incomplete(trained, tmp_path_factory) -> Path:
    """A patient with all files and one with two of them."""
    folder = tmp_path_factory.mktemp("incomplete")
    for path in (trained.raw / trained.dataset_name / "imagesTs").iterdir():
        if path.name.startswith("phantom_005") or path.name.endswith(("_0000.nii.gz", "_0002.nii.gz")):
            (folder / path.name).symlink_to(path)
    return folder


def validation(made: Workspace, trainer: str) -> dict[str, np.ndarray]:
    folder = made.model_folder(trainer) / "fold_0" / "validation"
    return {path.stem: np.load(path)["probabilities"] for path in folder.glob("*.npz")}


def test_validation_alone_of_the_final_and_of_the_best_checkpoint(trained, tmp_path):
    fold = trained.model_folder(STAGE3) / "fold_0"
    summary, of_final = fold / "validation" / "summary.json", validation(trained, STAGE3)
    scores = summary.read_text()
    shutil.copytree(fold / "validation", tmp_path / "validation")
    shutil.rmtree(fold / "validation")
    trained.train(STAGE3, "--val", "--val_best", "--npz")
    of_best = validation(trained, STAGE3)
    assert of_final.keys() == of_best.keys() and len(of_best) == 1
    assert all(not np.array_equal(of_final[case], of_best[case]) for case in of_best)
    assert json.loads(summary.read_text())["foreground_mean"] != json.loads(scores)["foreground_mean"]
    shutil.rmtree(fold / "validation")
    shutil.move(tmp_path / "validation", fold)


def test_a_training_without_checkpoints(trained):
    trained.train(CONTROL, "--disable_checkpointing", fold=2)
    fold = trained.model_folder(CONTROL) / "fold_2"
    assert not list(fold.glob("*.pth"))
    assert (fold / "validation" / "summary.json").is_file() and (fold / "progress.png").is_file()


def test_best_configuration_ensemble_and_postprocessing(trained, incomplete, tmp_path):
    trained.run(
        "nnUNetv2_find_best_configuration", trained.dataset, "-p", trained.plans, "-c", trained.configuration,
        "-tr", STAGE3, CONTROL, "-f", 0, "-np", 1,
    )  # fmt: skip
    results = trained.results / trained.dataset_name
    best = json.loads((results / "inference_information.json").read_text())
    assert len(best["all_results"]) == 3 and sum(name.startswith("ensemble_") for name in best["all_results"]) == 1
    (ensemble,) = (results / "ensembles").iterdir()
    assert segmentations(ensemble).keys() == {f"{case}.nii.gz" for case in validation(trained, STAGE3)}
    assert f"-tr {best['best_model_or_ensemble']['selected_model_or_models'][0]['trainer']}" in (
        (results / "inference_instructions.txt").read_text()
    )

    members = [tmp_path / "stage3", tmp_path / "control"]
    predict(trained, incomplete, members[0], *NOTHING_ELSE, "--save_probabilities", own=True)
    predict(trained, incomplete, members[1], *NOTHING_ELSE, "--save_probabilities", trainer=CONTROL)
    trained.run("nnUNetv2_ensemble", "-i", *members, "-o", tmp_path / "both", "-np", 1)
    averaged = segmentations(tmp_path / "both")
    for name, segmentation in averaged.items():
        probabilities = [np.load(folder / name.replace(".nii.gz", ".npz"))["probabilities"] for folder in members]
        assert np.array_equal(segmentation, np.mean(probabilities, 0, dtype=np.float32).argmax(0))
    assert len(averaged) == 3

    labels = trained.raw / trained.dataset_name / "labelsTr"
    fold_0 = trained.model_folder(STAGE3) / "fold_0" / "validation"
    model_files = [trained.model_folder(STAGE3) / name for name in ("plans.json", "dataset.json")]
    described = [word for pair in zip(("-plans_json", "-dataset_json"), model_files, strict=True) for word in pair]
    trained.run("nnUNetv2_determine_postprocessing", "-i", fold_0, "-ref", labels, *described, "-np", 1)
    assert (fold_0 / "postprocessing.pkl").is_file()
    chosen = best["best_model_or_ensemble"]["postprocessing_file"]
    out = tmp_path / "postprocessed"
    trained.run("nnUNetv2_apply_postprocessing", "-i", members[0], "-o", out, "-pp_pkl_file", chosen, "-np", 1)
    assert segmentations(out).keys() == averaged.keys()


def test_postprocessing_reads_what_predict_writes(trained, incomplete, tmp_path):
    """Two blobs, of which nnU-Net keeps the largest, in place of a segmentation."""
    predict(trained, incomplete, tmp_path / "predicted", *NOTHING_ELSE, "--disable_tta", own=True)
    path = min((tmp_path / "predicted").glob("*.nii.gz"))
    blobs = np.zeros_like(segmentations(path.parent)[path.name])
    blobs[:6, :6, :6], blobs[-2:, -2:, -2:] = 1, 2
    changed = sitk.GetImageFromArray(blobs)
    changed.CopyInformation(sitk.ReadImage(str(path)))
    sitk.WriteImage(changed, str(path))
    steps = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": [1, 2, 3]}])
    (tmp_path / "largest.pkl").write_bytes(pickle.dumps(steps))
    trained.run(
        "nnUNetv2_apply_postprocessing", "-i", path.parent, "-o", tmp_path / "largest",
        "-pp_pkl_file", tmp_path / "largest.pkl", "-np", 1,
    )  # fmt: skip
    kept = segmentations(tmp_path / "largest")
    assert kept.keys() == segmentations(path.parent).keys() and len(kept) == 3
    assert np.array_equal(kept[path.name], np.where(blobs == 2, 0, blobs))


def test_a_model_of_two_folds_works_in_a_clean_folder(trained, incomplete, tmp_path):
    """Exported and imported with both checkpoints; nnU-Net's other folders are not even set."""
    names = ("checkpoint_final.pth", "checkpoint_best.pth")
    trained.run(
        "nnUNetv2_export_model_to_zip", "-d", trained.dataset, "-o", tmp_path / "model.zip",
        "-c", trained.configuration, "-tr", STAGE3, "-p", trained.plans, "-f", *FOLDS, "-chk", *names,
    )  # fmt: skip
    clean = Workspace(tmp_path / "clean")
    clean.results.mkdir(parents=True)
    clean.run("nnUNetv2_install_pretrained_model_from_zip", tmp_path / "model.zip")
    assert not clean.raw.exists() and not clean.preprocessed.exists()
    options = (*NOTHING_ELSE, "--disable_tta", "-f", *FOLDS, "-chk")
    here, there, own, other = (tmp_path / name for name in ("here", "there", "own", "other"))
    predict(trained, incomplete, here, *options, names[1])
    predict(clean, incomplete, there, *options, names[1])
    predict(clean, incomplete, own, *options, names[1], own=True)
    predict(clean, incomplete, other, *options, names[0])
    assert len(segmentations(here)) == 3 and same(here, there) and same(here, own) and not same(here, other)


ODD_NAMES = ("p.1 left_0001", "P 2.0.1_T1", "003", "Müller-x_2", "case_0000_b")


def list_odd_cases(raw: Path, store: Path) -> None:
    """Move the images and let dataset.json list links to them, of cases with odd names."""
    (raw / "imagesTr").rename(store)
    (raw / "linked images").mkdir()
    listed = {}
    for number, name in enumerate(ODD_NAMES):
        images = [raw / "linked images" / f"{name}_{channel:04d}.nii.gz" for channel in range(4)]
        for channel, image in enumerate(images):
            image.symlink_to(store / f"phantom_{number:03d}_{channel:04d}.nii.gz")
        label = f"labelsTr/phantom_{number:03d}.nii.gz"
        listed[name] = {"images": [f"linked images/{image.name}" for image in images], "label": label}
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "dataset": listed}))


def test_odd_names_links_and_listed_files(workspace, tmp_path, monkeypatch):
    made = Workspace(tmp_path / "nnunet")
    shutil.copytree(workspace.root, made.root, ignore=shutil.ignore_patterns("results", f"{made.plans}_*"))
    list_odd_cases(made.raw / made.dataset_name, tmp_path / "a store.of files")
    made.run("unimrseg", "plan", "-d", made.dataset, "-c", made.configuration, "--preprocess-only", "-np", 1)
    splits = made.preprocessed / made.dataset_name / "splits_final.json"
    splits.write_text(json.dumps([{"train": ODD_NAMES, "val": ODD_NAMES}]))
    made.train(CONTROL)
    validated = {path.name.removesuffix(".nii.gz") for path in made.model_folder(CONTROL).rglob("*.nii.gz")}
    assert validated == set(ODD_NAMES)
    new, out = tmp_path / "new patients", tmp_path / "out.put 1"
    new.mkdir()
    sources = sorted((made.raw / made.dataset_name / "imagesTs").glob("*_0002.nii.gz"))
    for name, source in zip(ODD_NAMES, sources, strict=False):
        (new / f"{name}_0002.nii.gz").symlink_to(source)
    predict(made, new, out, *NOTHING_ELSE, "--disable_tta", trainer=CONTROL)
    assert sorted(segmentations(out)) == sorted(f"{name}.nii.gz" for name in ODD_NAMES[: len(sources)])
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(made.root / name))
    model = ("-m", str(made.model_folder(CONTROL)), "-f", "0", "-device", "cpu", "--disable_tta")
    assert main(["predict", "-i", str(new), "-o", str(tmp_path / "own"), *model, *map(str, NOTHING_ELSE)]) == 0
    assert same(out, tmp_path / "own")
    assert main(["evaluate", "-o", str(tmp_path / "scores"), *model, "--subsets", "T1", "all", "--no_report"]) == 0
    assert set(read_evaluation(tmp_path / "scores").scores["case"]) == validated
