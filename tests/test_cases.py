"""The cases of a folder: grouping, restriction to modalities, all problems at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunetv2_unimrseg.data.cases import (
    check_cases,
    describe_availability,
    find_cases,
    print_availability,
    write_availability,
)
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities

MODALITIES = Modalities(tiny.NAMES)


def write(path, value: float | None = None) -> None:
    array = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(array if value is None else np.full_like(array, value)), str(path))


@pytest.fixture
def folder(tmp_path):
    for name in ("b_0000", "b_0003", "a_0001", "a_b_0002"):
        write(tmp_path / f"{name}.nii.gz")
    (tmp_path / "notes.txt").touch()
    return tmp_path


def names(cases: list[list[str]]) -> list[list[str]]:
    return [[file.rsplit("/", 1)[1].removesuffix(tiny.ENDING) for file in files] for files in cases]


def test_files_are_grouped_by_case(folder):
    cases, problems = find_cases(folder, MODALITIES, tiny.ENDING, None)
    assert names(cases) == [["a_0001"], ["a_b_0002"], ["b_0000", "b_0003"]]
    assert not problems


def test_only_the_modalities_asked_for_are_used(folder):
    cases, problems = find_cases(folder, MODALITIES, tiny.ENDING, MODALITIES.subset(["CT", "T1"]))
    assert names(cases) == [["a_b_0002"], ["b_0000"]]
    assert len(problems) == 1 and "case 'a': none of the modalities asked for (CT+T1); it has PET" in problems[0]


def test_empty_and_absent_folders(tmp_path):
    for source, words in ((tmp_path / "none", "no input folder"), (tmp_path, "holds no file"), ([], "no case")):
        with pytest.raises(UserError, match=words):
            find_cases(source, MODALITIES, tiny.ENDING, None)


def test_availability_is_read_from_the_files(folder):
    write(folder / "b_0001.nii.gz", value=5)
    cases, _ = find_cases(folder, MODALITIES, tiny.ENDING, None)
    available = check_cases(cases, SimpleITKIO(), MODALITIES, tiny.ENDING, show_progress=False)
    assert available == [(False, True, False, False), (False, False, True, False), (True, False, False, True)]


def test_every_problem_of_every_case_is_one_error(folder):
    shutil.copy(folder / "b_0000.nii.gz", folder / "no_suffix.nii.gz")
    write(folder / "c_0009.nii.gz")
    write(folder / "d_0000.nii.gz", value=0)
    whole = (folder / "b_0000.nii.gz").read_bytes()
    (folder / "a_0002.nii.gz").write_bytes(whole[: len(whole) // 2])
    cases, problems = find_cases(folder, MODALITIES, tiny.ENDING, None)
    with pytest.raises(UserError) as error:
        check_cases(cases, SimpleITKIO(), MODALITIES, tiny.ENDING, problems=problems, show_progress=False)
    for words in ("4 problems", "no_suffix.nii.gz", "channel 0009", "no modality is available", "truncated"):
        assert words in str(error.value)


def test_cases_are_grouped_and_ordered_as_by_nnunet(folder):
    write(folder / "b_10_0001.nii.gz")
    write(folder / "scan_0007_0001.nii.gz")
    expected = create_lists_from_splitted_dataset_folder(str(folder), tiny.ENDING, num_processes=1)
    assert find_cases(folder, MODALITIES, tiny.ENDING, None) == (expected, [])


def test_a_folder_without_images_of_the_ending_says_what_it_holds(tmp_path):
    (tmp_path / "p_0000.mha").touch()
    with pytest.raises(UserError, match=r"(?s)'\.nii\.gz'.*scans cannot be used:.*p_0000\.mha: ends with '\.mha'"):
        find_cases(tmp_path, MODALITIES, tiny.ENDING, None)
    (tmp_path / "p_0000.mha").unlink()
    for number in range(6):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "imagesTs").mkdir()
    with pytest.raises(UserError, match=r"It holds: 0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 2 more\."):
        find_cases(tmp_path, MODALITIES, tiny.ENDING, None)


def test_a_scan_that_is_there_and_cannot_be_used_is_a_problem_of_the_input(folder):
    (folder / "b_0001.nii.gz").symlink_to("/unmounted/b_0001.nii.gz")
    write(folder / "a_0000.nii")
    (folder / "a_0003.NII.GZ").touch()
    (folder / "c_0002.nii.gz.part").touch()
    write(folder / "b_0000.nii")  # beside the unpacked one: not missed
    cases, problems = find_cases(folder, MODALITIES, tiny.ENDING, None)
    assert names(cases) == [["a_0001"], ["a_b_0002"], ["b_0000", "b_0003"]]
    with pytest.raises(UserError) as error:
        check_cases(cases, SimpleITKIO(), MODALITIES, tiny.ENDING, problems=problems, show_progress=False)
    first, *lines = str(error.value).splitlines()
    assert first == "The input has 4 problems; nothing was computed:"
    words = ("a_0000.nii: ends with '.nii'", "a_0003.NII.GZ: ends", "b_0001.nii.gz: is a link to /unmounted/", ".part'")
    assert len(lines) == 4 and all(word in line for word, line in zip(words, lines, strict=True))


def test_only_unusable_scans_of_the_modalities_asked_for_are_problems(folder):
    for name in ("b_0001", "a_0002", "b_0007"):
        write(folder / f"{name}.nii")
    (folder / "stray.nii.gz").mkdir()
    _, problems = find_cases(folder, MODALITIES, tiny.ENDING, MODALITIES.subset(["T1", "PET"]))
    named = " ".join(problems)
    assert "b_0001.nii: ends" in named and "a_0002.nii: ends" in named
    _, problems = find_cases(folder, MODALITIES, tiny.ENDING, MODALITIES.subset(["CT", "T2", "T1"]))
    named = " ".join(problems)
    assert "a_0002.nii: ends" in named and "b_0001.nii" not in named
    assert "b_0007.nii" in named and "stray.nii.gz: is a folder" in named  # which modality these are is not known


def test_hidden_files_are_ignored_and_said(folder, tmp_path, capsys):
    for name in ("._a_0000.nii.gz", "._a_0001.nii.gz", ".DS_Store"):
        (folder / name).touch()
    assert len(find_cases(folder, MODALITIES, tiny.ENDING, None)[0]) == 3
    assert capsys.readouterr().out == "Ignored 2 hidden files, such as ._a_0000.nii.gz.\n"
    (folder / "._a_0001.nii.gz").unlink()
    find_cases(folder, MODALITIES, tiny.ENDING, None)
    find_cases(folder, MODALITIES, tiny.ENDING, None, tell=False)
    assert capsys.readouterr().out == "Ignored 1 hidden file, ._a_0000.nii.gz.\n"
    for path in folder.glob("[!.]*"):
        path.unlink()
    with pytest.raises(UserError, match=r"It holds: only 1 hidden file, \._a_0000\.nii\.gz, which is ignored"):
        find_cases(folder, MODALITIES, tiny.ENDING, None)


def test_an_input_folder_that_is_none(folder, tmp_path):
    (tmp_path / "link").symlink_to("/unmounted/share")
    for source, words in (
        (folder / "b_0000.nii.gz", "it is a file. Give the folder that it lies in"),
        (tmp_path / "link", "is a link to /unmounted/share, which does not exist"),
    ):
        with pytest.raises(UserError, match=f"There is no input folder .*{words}"):
            find_cases(source, MODALITIES, tiny.ENDING, None)


@pytest.mark.parametrize(
    ("flat", "right"),
    [
        (["a_0000.nii.gz", "a_0001.nii.gz"], '[["a_0000.nii.gz", "a_0001.nii.gz"]]'),
        (["a_0000.nii.gz", "b_0000.nii.gz", "a_0001.nii.gz", "c_0000.nii.gz"],
         '[["a_0000.nii.gz", "a_0001.nii.gz"], ["b_0000.nii.gz"], ...]'),
        ([["a_0000.nii.gz"], "b_0000.nii.gz"], '[["b_0000.nii.gz"]]'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [str, Path])
def test_a_flat_list_of_files_is_one_error_that_shows_the_right_form(flat, right, kind):
    source = [kind(entry) if isinstance(entry, str) else entry for entry in flat]
    with pytest.raises(UserError) as error:
        find_cases(source, MODALITIES, tiny.ENDING, None)
    assert f"Give {right}, or the folder" in str(error.value)


def test_files_of_a_list_that_cannot_be_used_say_why(folder, tmp_path):
    files = [folder / f"p_000{number}.nii.gz" for number in range(4)]
    files[0].symlink_to("/unmounted/p")
    files[1].mkdir()
    write(files[2])
    with pytest.raises(UserError) as error:
        check_cases([list(map(str, files))], SimpleITKIO(), MODALITIES, tiny.ENDING, problems=(), show_progress=False)
    for words in ("3 problems", "link to /unmounted/p, which", "is a folder", "p_0003.nii.gz: there is no such file."):
        assert words in str(error.value)


def test_a_list_with_a_case_without_files(folder):
    cases, problems = find_cases([[folder / "b_0000.nii.gz"], []], MODALITIES, tiny.ENDING, None)
    assert cases == [[str(folder / "b_0000.nii.gz")]]
    assert problems == ["case number 1: no file."]


def test_to_leave_files_out_their_names_must_say_which_they_are(tmp_path):
    files = [tmp_path / f"{name}.nii.gz" for name in "dcba"]
    for file in files:
        write(file)
    cases, problems = find_cases([files], MODALITIES, tiny.ENDING, None)
    assert names(cases) == [list("dcba")] and not problems
    _, problems = find_cases([files], MODALITIES, tiny.ENDING, MODALITIES.subset(["CT"]))
    assert len(problems) == 1 and "'_XXXX' suffix" in problems[0]


def test_a_file_of_all_channels_cannot_be_used_in_part(tmp_path):
    path = tmp_path / "p_0000.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in tiny.image()]), str(path))
    options = {"reader": SimpleITKIO(), "modalities": MODALITIES, "file_ending": tiny.ENDING, "show_progress": False}
    assert check_cases([[str(path)]], **options) == [(True,) * 4]
    with pytest.raises(UserError, match=r"also holds PET\+T1\+T2, which was not asked for"):
        check_cases([[str(path)]], **options, chosen=MODALITIES.subset(["CT"]))


def test_the_report_names_what_is_there_and_what_is_not(capsys):
    report = describe_availability((True, False, True, False), MODALITIES)
    assert report == {"available": ["CT", "T1"], "missing": ["PET", "T2"]}
    print_availability({"p": report, "q": describe_availability((True,) * 4, MODALITIES)})
    assert capsys.readouterr().out.splitlines() == [
        "p: available: CT, T1, missing: PET, T2",
        "q: available: CT, PET, T1, T2, nothing missing",
    ]


def test_a_report_that_cannot_be_read_is_not_overwritten(tmp_path):
    (tmp_path / "modalities.json").write_text("{")
    with pytest.raises(UserError, match=r"modalities\.json"):
        write_availability(tmp_path, {"a": {}})
    assert (tmp_path / "modalities.json").read_text() == "{"
    assert [path.name for path in tmp_path.iterdir()] == ["modalities.json"]
