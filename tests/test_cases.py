"""The cases of a folder: grouping, restriction to modalities, all problems at once."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
import tiny
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunetv2_unimrseg import cases
from nnunetv2_unimrseg.cases import check_cases, find_cases, print_report, report_of, write_report
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
    problems: list[str] = []
    cases = find_cases(folder, MODALITIES, tiny.ENDING, None, problems)
    assert names(cases) == [["a_0001"], ["a_b_0002"], ["b_0000", "b_0003"]]
    assert not problems


def test_only_the_modalities_asked_for_are_used(folder):
    problems: list[str] = []
    cases = find_cases(folder, MODALITIES, tiny.ENDING, MODALITIES.subset(["CT", "T1"]), problems)
    assert names(cases) == [["a_b_0002"], ["b_0000"]]
    assert len(problems) == 1 and "case 'a': none of the modalities asked for (CT+T1); it has PET" in problems[0]


def test_empty_and_absent_folders(tmp_path):
    for source, words in ((tmp_path / "none", "no input folder"), (tmp_path, "holds no file"), ([], "no case")):
        with pytest.raises(UserError, match=words):
            find_cases(source, MODALITIES, tiny.ENDING, None, [])


def test_availability_is_read_from_the_files(folder):
    write(folder / "b_0001.nii.gz", value=5)
    cases = find_cases(folder, MODALITIES, tiny.ENDING, None, [])
    available = check_cases(cases, SimpleITKIO(), MODALITIES, tiny.ENDING, show_progress=False)
    assert available == [(False, True, False, False), (False, False, True, False), (True, False, False, True)]


def test_every_problem_of_every_case_is_one_error(folder):
    shutil.copy(folder / "b_0000.nii.gz", folder / "no_suffix.nii.gz")
    write(folder / "c_0009.nii.gz")
    write(folder / "d_0000.nii.gz", value=0)
    whole = (folder / "b_0000.nii.gz").read_bytes()
    (folder / "a_0002.nii.gz").write_bytes(whole[: len(whole) // 2])
    problems: list[str] = []
    cases = find_cases(folder, MODALITIES, tiny.ENDING, None, problems)
    with pytest.raises(UserError) as error:
        check_cases(cases, SimpleITKIO(), MODALITIES, tiny.ENDING, problems=problems, show_progress=False)
    for words in ("4 problem(s)", "no_suffix.nii.gz", "channel 0009", "no modality is available", "truncated"):
        assert words in str(error.value)


def test_cases_are_grouped_and_ordered_as_by_nnunet(folder):
    write(folder / "b_10_0001.nii.gz")
    write(folder / "scan_0007_0001.nii.gz")
    expected = create_lists_from_splitted_dataset_folder(str(folder), tiny.ENDING, num_processes=1)
    assert find_cases(folder, MODALITIES, tiny.ENDING, None, []) == expected


def test_a_folder_without_images_of_the_ending_says_what_it_holds(tmp_path):
    (tmp_path / "p_0000.mha").touch()
    with pytest.raises(UserError, match=r"'\.nii\.gz'.*It holds: p_0000\.mha"):
        find_cases(tmp_path, MODALITIES, tiny.ENDING, None, [])


def test_a_list_with_a_case_without_files(folder):
    problems: list[str] = []
    cases = find_cases([[folder / "b_0000.nii.gz"], []], MODALITIES, tiny.ENDING, None, problems)
    assert cases == [[str(folder / "b_0000.nii.gz")]]
    assert problems == ["case number 1: no file."]


def test_to_leave_files_out_their_names_must_say_which_they_are(tmp_path):
    files = [tmp_path / f"{name}.nii.gz" for name in "dcba"]
    for file in files:
        write(file)
    problems: list[str] = []
    assert names(find_cases([files], MODALITIES, tiny.ENDING, None, problems)) == [list("dcba")]
    assert not problems
    find_cases([files], MODALITIES, tiny.ENDING, MODALITIES.subset(["CT"]), problems)
    assert len(problems) == 1 and "'_XXXX' suffix" in problems[0]


def test_a_file_of_all_channels_cannot_be_used_in_part(tmp_path):
    path = tmp_path / "p_0000.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(channel) for channel in tiny.image()]), str(path))
    options = {"reader": SimpleITKIO(), "modalities": MODALITIES, "file_ending": tiny.ENDING, "show_progress": False}
    assert check_cases([[str(path)]], **options) == [(True,) * 4]
    with pytest.raises(UserError, match=r"also holds PET\+T1\+T2, which was not asked for"):
        check_cases([[str(path)]], **options, chosen=MODALITIES.subset(["CT"]))


def test_the_report_names_what_is_there_and_what_is_not(capsys):
    report = report_of((True, False, True, False), MODALITIES)
    assert report == {"available": ["CT", "T1"], "missing": ["PET", "T2"]}
    print_report({"p": report, "q": report_of((True,) * 4, MODALITIES)})
    assert capsys.readouterr().out.splitlines() == [
        "p: available: CT, T1, missing: PET, T2",
        "q: available: CT, PET, T1, T2, nothing missing",
    ]


def test_a_report_that_cannot_be_read_is_not_overwritten(tmp_path):
    (tmp_path / "modalities.json").write_text("{")
    with pytest.raises(UserError, match=r"modalities\.json"):
        write_report(tmp_path, {"a": {}})
    assert (tmp_path / "modalities.json").read_text() == "{"
    assert [path.name for path in tmp_path.iterdir()] == ["modalities.json"]


def test_a_lock_of_a_process_that_died_is_taken_and_one_in_use_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "_ABANDONED_AFTER_S", 0.3)
    lock = tmp_path / ".report.json.lock"
    lock.touch()
    with cases.one_at_a_time(tmp_path / "report.json"):
        assert lock.exists()
    assert not lock.exists()

    inside, most = [], []

    def enter(number: int) -> None:
        with cases.one_at_a_time(tmp_path / "report.json"):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)

    with ThreadPoolExecutor(6) as pool:  # the last waits for longer than a lock may stay the same
        list(pool.map(enter, range(6)))
    assert most == [1] * 6 and not lock.exists()
