"""Places to write: apart from what is read, tried out before anything is computed, left as they were."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import reconstructors
import tiny
import trained
from test_scan_folder import open_folder, without_permissions  # noqa: F401 (a fixture)

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.evaluation.cases import cases_of_folders, validation_cases
from nnunetv2_unimrseg.utils.output_folder import check_output_files, check_output_folder


@pytest.fixture
def read_only(tmp_path):
    """A folder on a really read-only file system."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"mounting is not permitted here: {mounted.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True, capture_output=True)
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def error_of(function, *arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def everything_in(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("below", ["", "new", "new/deeper"])
def test_a_place_that_can_be_written_to_is_left_as_it_was(tmp_path, monkeypatch, below):
    before = everything_in(tmp_path)
    check_output_folder(tmp_path / below)
    monkeypatch.chdir(tmp_path)
    check_output_folder(below or ".")
    check_output_files([tmp_path / below / "a.nii.gz"])
    assert {path: None for path in everything_in(tmp_path)} == {path: None for path in before}


@pytest.mark.parametrize("below", ["", "new/deeper"])
def test_a_read_only_file_system(read_only, below):
    message = error_of(check_output_folder, read_only / below, advice="Do this.")
    doing = "made" if below else "written to"
    assert message == (
        f"The output folder {read_only / below} cannot be {doing}: {read_only} lies on a read-only file system. "
        "Do this."
    )
    assert "read-only" in error_of(check_output_files, [read_only / "a.nii.gz"])
    assert not any(read_only.iterdir())


@pytest.mark.parametrize("number", [13, 30, 28])
def test_whatever_the_file_system_says(tmp_path, monkeypatch, number):
    def fails(dir):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fails)
    words = {
        13: f"no permission in {tmp_path}",
        30: f"{tmp_path} lies on a read-only file system",
        28: f"No space left on device in {tmp_path}",
    }
    message = error_of(check_output_folder, tmp_path / "out")
    assert message == (
        f"The output folder {tmp_path}/out cannot be made: {words[number]}. Give another output folder (-o)."
    )
    assert words[number] in error_of(check_output_folder, tmp_path)


def test_a_folder_without_permission(open_folder):  # noqa: F811
    with without_permissions():
        assert f"no permission in {open_folder}" in error_of(check_output_folder, open_folder / "out")
        assert "cannot be written to: no permission" in error_of(check_output_folder, open_folder)
    assert not any(open_folder.iterdir())


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to("/unmounted/share")
    assert f"{tmp_path}/file is a file, no folder. Give" in error_of(check_output_folder, tmp_path / "file")
    for below in ("out", "new/out"):
        message = error_of(check_output_folder, tmp_path / "file" / below)
        assert f"cannot be made: {tmp_path}/file is a file, no folder." in message
    for below in ("", "out"):
        message = error_of(check_output_folder, tmp_path / "link" / below)
        assert "is a link to /unmounted/share, which is no folder that can be reached" in message
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("output", "relation"),
    [
        ("in", "is the input folder"),
        ("in/out", "lies in the input folder"),
        (".", "holds the input folder"),
        ("link", "is the input folder"),
        ("link/out/deeper", "lies in the input folder"),
        ("in/../in", "is the input folder"),
    ],
)
def test_input_and_output_folder_lie_apart(tmp_path, output, relation):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "input_link").symlink_to("in")
    for read in ("in", "input_link"):
        message = error_of(check_output_folder, tmp_path / output, [tmp_path / "elsewhere", tmp_path / read])
        assert f"The output folder {tmp_path / output}" in message and f"{relation} {tmp_path / read}" in message
        assert "would be taken for input. Give another output folder (-o)." in message
        assert f"(it leads to {tmp_path / 'in'}" in message or "link" not in output
    assert not any((tmp_path / "in").iterdir())


def test_folders_beside_each_other_are_apart(tmp_path):
    (tmp_path / "in").mkdir()
    for output in ("out", "in_out", "i", "in2/in"):
        check_output_folder(tmp_path / output, [tmp_path / "in"])


def test_a_folder_that_holds_an_input_file(tmp_path):
    for folder in ("in/deep", "store"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "store" / "x.nii.gz").touch()
    file = tmp_path / "in" / "deep" / "a_0000.nii.gz"
    file.symlink_to(tmp_path / "store" / "x.nii.gz")
    for output in ("in/deep", "in", "store"):
        message = error_of(check_output_folder, tmp_path / output, [file])
        assert f"The output folder {tmp_path / output} holds the input file {file}." in message
    for output in ("in/deep/out", "store/out", "other"):
        check_output_folder(tmp_path / output, [file])


def test_an_output_file_that_is_an_input(tmp_path):
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "a_0000.nii.gz"
    file.touch()
    (tmp_path / "link.nii.gz").symlink_to(file)
    (tmp_path / "folder").symlink_to("in")
    for output in (file, tmp_path / "link.nii.gz", tmp_path / "folder" / file.name):
        message = error_of(check_output_files, [tmp_path / "fine.nii.gz", output], [file])
        assert message == (
            f"The output file {output} is the input file {file}, which it would replace. Give another output file."
        )
    check_output_files([tmp_path / "in" / "a.nii.gz"], [file])
    message = error_of(check_output_files, [tmp_path / "in" / "a.nii.gz"], [tmp_path / "in"])
    assert f"lies in the input folder {tmp_path / 'in'}" in message
    check_output_files([tmp_path / "a.nii.gz"], [tmp_path / "in"])


# --- the commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command on two cases with labels and a trained model; returns its one message, having changed nothing."""
    trained.write_cases(tmp_path / "in", tmp_path / "labels", "ab")
    models = {"evaluate": trained.write_model(tmp_path / "models")}
    models |= {"predict": models["evaluate"], "reconstruct": reconstructors.write_model(tmp_path / "models")}

    def run(name: str, *words: object) -> str:
        before = everything_in(tmp_path)
        arguments = [name, "-m", models[name], "-f", 0, "-device", "cpu", *words]
        assert main([str(word) for word in arguments]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        assert everything_in(tmp_path).keys() == before.keys()
        return message

    run.model = models["evaluate"]
    return run


@pytest.mark.parametrize("name", ["predict", "reconstruct", "evaluate"])
def test_commands_refuse_to_write_into_their_input(command, tmp_path, name):
    images, labels = tmp_path / "in", tmp_path / "labels"
    inputs = ["-i", images, *(["-l", labels] if name == "evaluate" else [])]
    (tmp_path / "link").symlink_to(images)
    for output, words in (
        (images, "is the input folder"),
        (images / "new", "lies in the input folder"),
        (tmp_path / "link" / "new", "lies in the input folder"),
        (tmp_path, "holds the input folder"),
    ):
        message = command(name, *inputs, "-o", output)
        assert f"{words} {images}." in message and "Give another output folder (-o)." in message
    if name == "evaluate":
        assert f"is the input folder {labels}." in command(name, *inputs, "-o", labels)
    if name == "predict":
        message = command(name, *inputs, "-prev_stage_predictions", labels, "-o", labels / "new")
        assert f"lies in the input folder {labels}." in message


@pytest.mark.parametrize("name", ["predict", "reconstruct", "evaluate"])
def test_commands_refuse_a_place_that_cannot_be_written_to(command, tmp_path, read_only, name):
    inputs = ["-i", tmp_path / "in", *(["-l", tmp_path / "labels"] if name == "evaluate" else [])]
    (tmp_path / "file").touch()
    message = command(name, *inputs, "-o", read_only / "out")
    assert f"{read_only} lies on a read-only file system. Give another output folder (-o)." in message
    assert "file is a file, no folder" in command(name, *inputs, "-o", tmp_path / "file")
    assert "file is a file, no folder" in command(name, *inputs, "-o", tmp_path / "file" / "out")


def test_a_model_that_cannot_be_written_to_is_evaluated_elsewhere(command, tmp_path, monkeypatch):
    trained.write_dataset(tmp_path, ["a", "b"], [["a"]])
    for variable in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))

    def read_only_file_system(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only_file_system)
    message = command("evaluate")
    assert f"{command.model} lies on a read-only file system. An evaluation is written into the model's" in message
    assert "(-o): give one." in message


def test_compare_refuses_a_place_before_it_reads(read_only, capsys):
    assert main(["compare", "no_evaluation", "neither", "-o", str(read_only / "out")]) == 2
    assert "lies on a read-only file system" in capsys.readouterr().err


# --- labels and training images that would go unnoticed -----------------------------------------------------------


def test_a_label_that_is_there_and_cannot_be_used_is_named_with_its_reason(tmp_path):
    images, labels = tmp_path / "in", tmp_path / "labels"
    trained.write_cases(images, labels, "abcd")
    (labels / "a.nii.gz").rename(labels / "a.nii")
    (labels / "b.nii.gz").unlink()
    (labels / "b.nii.gz").symlink_to("/unmounted/b.nii.gz")
    (labels / "c.nii.gz").unlink()
    message = error_of(cases_of_folders, images, labels, tiny.dataset_json(), ["0"])
    assert message.startswith("The cases have 3 problems; nothing was computed:")
    assert f"case 'a': the label {labels}/a.nii: ends with '.nii', this dataset's files with '.nii.gz'." in message
    assert f"case 'b': the label {labels}/b.nii.gz: is a link to /unmounted/b.nii.gz, which does not exist." in message
    assert f"case 'c': there is no file {labels}/c.nii.gz." in message


def test_scans_of_validation_cases_do_not_go_unnoticed(tmp_path, monkeypatch):
    trained.write_dataset(tmp_path, ["a", "b"], [["a"]])
    for variable in ("raw", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    images = tmp_path / "raw" / trained.DATASET / "imagesTr"
    for name in "ab":
        (images / f"{name}_0002.nii.gz").unlink()
        (images / f"{name}_0002.nii.gz").symlink_to("/unmounted/x")
    message = error_of(validation_cases, tiny.plans(), trained.CONFIGURATION, tiny.dataset_json(), ["0"])
    assert message == (
        f"The cases have 1 problem; nothing was computed:\n  - {images}/a_0002.nii.gz: is a link to /unmounted/x, "
        "which does not exist. Mount or copy what it points to, or remove the link."
    )
