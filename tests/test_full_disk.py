"""A full disk: each command ends with one message, what it leaves is whole, and what was finished before stays."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import comparable
import pytest
import reconstructors
import tiny
import torch
import trained
from full_disk import check_whole, files_in, fill, full_disk, is_full, small_disk  # noqa: F401 (a fixture)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.trained_model import findable_trainers

NO_SPACE = "No space left on device"
SILENT = "is the disk or the quota full?"
"""Said where a library, as ITK, reports nothing and what it wrote is not whole."""

QUICK = ("-f", 0, "-device", "cpu", "-npp", 0, "-nps", 0, "--disable_progress_bar", "--disable_tta")


@pytest.fixture
def dataset(tmp_path, monkeypatch) -> Path:
    """Three cases that fold 0 validates, and nnU-Net's folders; returns the folder that holds all."""
    trained.write_dataset(tmp_path, ["a", "b", "c"], [["a", "b", "c"]])
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    return tmp_path


@pytest.fixture
def patients(tmp_path) -> Path:
    for name in "abc":
        tiny.write_case(tmp_path / "patients", name, tiny.image(1), (0, 2))
    return tmp_path / "patients"


def emptied(disk: Path) -> Path:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return disk


def run(capsys: pytest.CaptureFixture, *command: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in command])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def check_refused(code: int, error: str, *words: str) -> None:
    """Check that one message, without traceback, is all that is said, and that it tells of a full disk."""
    assert code == 2
    assert NO_SPACE in error or SILENT in error
    assert error.count("unimrseg: error: ") == 1 and "Traceback" not in error and len(error.splitlines()) == 1, error
    for part in words:
        assert part in error, error


def each_amount_of_room(
    disk: Path, pages: Sequence[int], command: Callable[[], tuple[int, str, str]], before: Callable[[], None] = list
) -> list[int]:
    """Run a command with every amount of room, and check what it says and leaves; returns the exit codes."""
    codes = []
    for left in pages:
        emptied(disk)
        before()
        earlier = files_in(disk)
        fill(disk, left)
        code, _, error = command()
        if code:
            check_refused(code, error, "Cannot write ", " What was there before is unchanged. ", "0.0 MB free.")
        there = check_whole(disk)
        assert set(earlier) <= set(there)
        codes.append(code)
    return codes


@pytest.mark.integration
@pytest.mark.parametrize("more", [("--save_probabilities",), ()], ids=["probabilities", "segmentations"])
def test_predict_leaves_whole_files_only_however_much_room_there_is(full_disk, patients, tmp_path, capsys, more):  # noqa: F811
    model, out = trained.write_model(tmp_path / "results"), full_disk / "out"
    command = ("predict", "-i", patients, "-o", out, "-m", model, *QUICK, "--no_report", *more)
    pages = (0, 1, 2, 3, 4, 5, 6, 7, 8) if not more else (4, 5, 8, 11, 14, 16)
    codes = each_amount_of_room(full_disk, pages, lambda: run(capsys, *command))
    assert codes[0] == 2 and (codes[-1] == 0) == (not more)
    finished = {path.name[0] for path in out.glob("*.nii.gz")}
    expected = {f"{case}{ending}" for case in finished for ending in (".nii.gz", *((".npz", ".pkl") if more else ()))}
    assert {path.name for path in out.iterdir() if path.suffix != ".json"} == expected


@pytest.mark.integration
def test_predict_goes_on_where_a_full_disk_stopped_it(full_disk, patients, tmp_path, capsys):  # noqa: F811
    model, out = trained.write_model(tmp_path / "results"), full_disk / "out"
    command = ("predict", "-i", patients, "-o", out, "-m", model, *QUICK, "--no_report")
    fill(full_disk, 6)
    check_refused(*run(capsys, *command)[::2], f"Cannot write {out}/")
    is_full(full_disk)
    finished = {name: time for name, time in files_in(out).items() if name.endswith(".nii.gz")}
    assert 0 < len(finished) < 3
    (full_disk / "filler").unlink()
    assert run(capsys, *command, "--c")[0] == 0
    assert finished.items() < files_in(out).items() and len(list(out.glob("*.nii.gz"))) == 3


@pytest.mark.integration
def test_the_report_of_a_prediction_is_whole_or_the_one_before(full_disk, patients, tmp_path, capsys):  # noqa: F811
    model, out = trained.write_model(tmp_path / "results"), full_disk / "out"
    command = ("predict", "-i", patients, "-o", out, "-m", model, *QUICK)
    assert set(each_amount_of_room(full_disk, range(7), lambda: run(capsys, *command))) == {2}
    emptied(full_disk)
    assert run(capsys, *command)[0] == 0
    before = {name: (out / name).read_bytes() for name in ("report.json", "report.html")}
    fill(full_disk, 1)
    check_refused(*run(capsys, *command)[::2])
    assert len(check_whole(out)) == 9
    for name, content in before.items():
        assert len((out / name).read_bytes()) == len(content)  # both name the time


def test_a_place_that_leads_to_a_full_device_is_refused_before_predicting(patients, tmp_path, capsys):
    model, out = trained.write_model(tmp_path / "results"), tmp_path / "out"
    out.mkdir()
    (tmp_path / "folder").mkdir()
    for target, words in (
        ("/dev/full", "it leads to /dev/full, which is no regular file."),
        (tmp_path / "folder", f"it leads to {tmp_path}/folder, which is a folder."),
        (None, "it is a folder."),
        ("/unmounted/b.nii.gz", "it is a link to /unmounted/b.nii.gz, and there is no folder /unmounted."),
    ):
        place = out / "b.nii.gz"
        place.mkdir() if target is None else place.symlink_to(target)
        code, _, error = run(capsys, "predict", "-i", patients, "-o", out, "-m", model, *QUICK)
        assert code == 2 and "The input has 1 problem; nothing was computed:" in error
        assert f"{place} cannot be written: {words} Remove it, or choose another output (-o)." in error
        assert sorted(out.iterdir()) == [place] and os.path.exists("/dev/full")
        place.rmdir() if target is None else place.unlink()
    (tmp_path / "elsewhere.nii.gz").write_text("an older one")
    (out / "b.nii.gz").symlink_to(tmp_path / "elsewhere.nii.gz")
    assert run(capsys, "predict", "-i", patients, "-o", out, "-m", model, *QUICK)[0] == 0
    assert (out / "b.nii.gz").is_symlink() and not (out / "a.nii.gz").is_symlink()
    assert (tmp_path / "elsewhere.nii.gz").read_bytes() == (out / "b.nii.gz").read_bytes()
    assert len(check_whole(out)) == 9 and check_whole(tmp_path / "folder") == []


def test_nnunets_own_predictor_leaves_whole_segmentations_only(full_disk, patients, tmp_path):  # noqa: F811
    model, out = trained.write_model(tmp_path / "results"), full_disk / "out"
    predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
    with findable_trainers():
        predictor.initialize_from_trained_model_folder(str(model), (0,))
    out.mkdir()
    fill(full_disk, 5)
    with pytest.raises(UserError, match=rf"Cannot write {out}/b\.nii\.gz: .*MB free\.$"):
        predictor.predict_from_files_sequential(str(patients), str(out))
    assert {path.name for path in out.glob("*.nii.gz")} == {"a.nii.gz"} and check_whole(out)


# --- evaluate -----------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("threads", [0, 2])
def test_evaluate_leaves_whole_files_only_however_much_room_there_is(full_disk, dataset, capsys, threads):  # noqa: F811
    model, out = trained.write_model(dataset / "results"), full_disk / "out"
    words = ("evaluate", "-m", model, "-o", out, *QUICK, "--subsets", "T1", "--no_report", "--no_store")
    command = (*words, "-npp", threads, "-nps", threads)
    codes = each_amount_of_room(full_disk, (0, 1, 2, 4, 7, 8, 15), lambda: run(capsys, *command))
    assert codes[0] == 2 and codes[-1] == 0
    assert len(check_whole(full_disk)) == 1 + 2 * 3 + 2
    emptied(full_disk)
    fill(full_disk, 4)
    check_refused(*run(capsys, *command)[::2])
    before = files_in(out)
    records = [name for name in before if name.startswith("scores")]
    assert records
    (full_disk / "filler").unlink()
    assert run(capsys, *command)[0] == 0
    after = files_in(out)
    assert all(before[name] == after[name] for name in records)


@pytest.mark.integration
def test_an_evaluation_stays_where_its_report_does_not_fit(full_disk, dataset, capsys):  # noqa: F811
    model, out = trained.write_model(dataset / "results"), full_disk / "out"
    command = ("evaluate", "-m", model, "-o", out, *QUICK, "--subsets", "complete", "--no_store")
    check_refused(*run(capsys, *command)[::2], f"Cannot write {out}: {NO_SPACE}")
    assert {"summary.json", "subsets.csv", "evaluation.json"} == {path.name for path in out.iterdir() if path.is_file()}
    assert len(check_whole(out)) == 3 + 2 * 3 and not (out / "plots").exists()


@pytest.mark.integration
def test_a_checkpoint_stays_where_an_evaluation_does_not_fit_beside_it(full_disk, dataset, tmp_path, capsys):  # noqa: F811
    made = trained.write_model(dataset / "results")
    model = shutil.copytree(made, full_disk / made.name)
    fill(full_disk, 1)
    before = files_in(full_disk)
    out = tmp_path / "out"
    code, said, _ = run(capsys, "evaluate", "-m", model, "-o", out, *QUICK, "--subsets", "complete", "--no_report")
    assert code == 0 and (out / "summary.json").is_file()
    checkpoint = model / "fold_0" / "checkpoint_final.pth"
    assert f"WARNING: The evaluation was not stored in its checkpoint. Cannot write {checkpoint}: " in said
    assert said.count("WARNING") == 1 and "must be writable and have 0 MB free." in said
    assert files_in(full_disk) == before


# --- the others ---------------------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("threads", [0, 2])
def test_reconstruct_leaves_whole_files_only_however_much_room_there_is(full_disk, patients, tmp_path, capsys, threads):  # noqa: F811
    model, out = reconstructors.write_model(tmp_path / "results"), full_disk / "out"
    command = ("reconstruct", "-i", patients, "-o", out, "-m", model, *QUICK, "-npp", threads, "-nps", threads)
    codes = each_amount_of_room(full_disk, (0, 1, 2, 3, 5, 8, 12, 15), lambda: run(capsys, *command))
    assert set(codes) == {2}
    (full_disk / "filler").unlink()
    run(capsys, *command, "--c")
    before = files_in(out)
    for picture in out.glob("*_reconstruction.png"):
        case = picture.name[0]
        assert (out / f"{case}_0001.nii.gz").is_file() and (out / f"{case}_0003.nii.gz").is_file()
    check_whole(out)
    roomy = shutil.copytree(out, tmp_path / "roomy", copy_function=shutil.copy2)
    assert run(capsys, *command, "--c", "-o", roomy)[0] == 0
    after = files_in(roomy)
    done = [name for name in before if f"{name[0]}_reconstruction.png" in before and name[1] == "_"]
    assert all(before[name] == after[name] for name in done)
    assert len(check_whole(roomy)) == 3 * 3 + 2


@pytest.mark.parametrize("more", ["--overwrite", "--c"])
def test_a_place_that_cannot_take_a_file_is_refused_before_reconstructing(patients, tmp_path, capsys, more):
    model, out = reconstructors.write_model(tmp_path / "results"), tmp_path / "out"
    command = ("reconstruct", "-i", patients, "-o", out, "-m", model, *QUICK)
    assert run(capsys, *command)[0] == 0
    for name in ("b_0003.nii.gz", "b_reconstruction.png"):
        (out / name).unlink()
        (out / name).mkdir()
        before = files_in(out)
        code, _, error = run(capsys, *command, more)
        assert code == 2 and "The input has 1 problem; nothing was computed:" in error
        assert f"{out / name} cannot be written: it is a folder. Remove it, or give another output folder" in error
        assert files_in(out) == before
        (out / name).rmdir()
        (out / name).symlink_to("/dev/full")
        assert "it leads to /dev/full, which is no regular file." in run(capsys, *command, more)[2]
        (out / name).unlink()
        assert run(capsys, *command, more)[0] == 0
    assert len(check_whole(out)) == 3 * 3 + 2


def test_compare_leaves_the_comparison_before(tmp_path, capsys):
    one = comparable.baseline(num_cases=5)
    folders = [
        comparable.written(each, tmp_path / name) for name, each in (("one", one), ("two", comparable.another(one)))
    ]
    with small_disk(tmp_path / "disk", 2048) as disk:
        command = ("compare", *folders, "-o", disk / "out", "--resamples", 100)
        for pages in (0, 1, 20):
            fill(disk, pages)
            check_refused(*run(capsys, *command)[::2], f"Cannot write {disk / 'out'}: {NO_SPACE}")
            assert files_in(disk) == {}
        (disk / "filler").unlink()
        assert run(capsys, *command)[0] == 0
        before = files_in(disk)
        fill(disk)
        check_refused(*run(capsys, *command)[::2])
        assert files_in(disk) == before and check_whole(disk) == list(before)


def test_configure_leaves_the_plans_before(full_disk, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("nnUNet_preprocessed", str(full_disk))
    monkeypatch.delenv("nnUNet_results", raising=False)
    path = full_disk / trained.DATASET / "nnUNetPlans.json"
    path.parent.mkdir()
    path.write_text(json.dumps(tiny.plans()))
    content, before = path.read_bytes(), files_in(full_disk)
    fill(full_disk)
    command = ("configure", "-d", 998, "-c", "3d_fullres", "--set", "stage1.num_epochs=7")
    check_refused(*run(capsys, *command)[::2], f"Cannot write {path}: {NO_SPACE}")
    assert path.read_bytes() == content and files_in(full_disk) == before
    (full_disk / "filler").unlink()
    assert run(capsys, *command)[0] == 0 and path.read_bytes() != content


@pytest.mark.parametrize("pages", [0, 1, 3, 9])
def test_demo_writes_all_or_nothing(full_disk, monkeypatch, capsys, pages):  # noqa: F811
    monkeypatch.setenv("nnUNet_raw", str(full_disk))
    fill(full_disk, pages)
    code, _, error = run(capsys, "demo", "-n", 1, "--unseen", 0, "--shape", 24, 24, 24)
    assert code == 2 and error.count("unimrseg: error: ") == 1 and "Traceback" not in error
    assert "Cannot write " in error and "What was there before is unchanged." in error
    assert [path.name for path in full_disk.iterdir()] == ["filler"]
