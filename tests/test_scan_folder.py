"""A folder of scans: what is there is used, or said to be unusable, or no scan; nothing goes unnoticed."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from nnunetv2_unimrseg.data.scan_folder import scan_folder, why_unusable
from nnunetv2_unimrseg.errors import UserError, counted, listed

ENDING = ".nii.gz"


@contextmanager
def without_permissions():
    """Be a user who may not do everything, where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that every user can enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def reasons(folder: Path, ending: str = ENDING, **options: object) -> dict[str, str]:
    return {scan.path.name: scan.reason for scan in scan_folder(folder, ending, **options).unusable}


def test_images_sorted_and_nothing_else(tmp_path):
    touch(tmp_path, "b_0001.nii.gz", "a_0000.nii.gz", "B_0000.nii.gz", "no_suffix.nii.gz", "notes.txt")
    (tmp_path / "more").mkdir()
    contents = scan_folder(tmp_path, ENDING)
    assert [path.name for path in contents.images] == [*sorted(os.listdir(tmp_path))[:3], "no_suffix.nii.gz"]
    assert contents.images[0] == tmp_path / "B_0000.nii.gz"
    assert contents.unusable == contents.hidden == ()
    assert contents.others == ("more/", "notes.txt")


def test_links_are_used_and_a_dangling_one_is_not(tmp_path):
    touch(tmp_path, "store")
    (tmp_path / "a_0000.nii.gz").symlink_to("store")
    (tmp_path / "a_0002.nii.gz").symlink_to("/unmounted/share/x.nii.gz")
    (tmp_path / "a_0003.nii.gz").symlink_to(".git/annex/objects/x/y.nii.gz")
    (tmp_path / "a_0001.nii.gz").symlink_to("a_0001.nii.gz")
    contents = scan_folder(tmp_path, ENDING)
    assert [path.name for path in contents.images] == ["a_0000.nii.gz"]
    loop, share, annex = contents.unusable
    assert (share.case, share.channel) == ("a", 2)
    assert str(share) == (
        f"{tmp_path}/a_0002.nii.gz: is a link to /unmounted/share/x.nii.gz, which does not exist. Mount or copy what "
        "it points to, or remove the link."
    )
    assert f"link to {tmp_path}/.git/annex/objects/x/y.nii.gz" in annex.reason and "git annex get" in annex.reason
    assert "a link that leads back to itself" in loop.reason


def test_what_is_no_file(tmp_path, monkeypatch):
    (tmp_path / "a_0000.nii.gz").mkdir()
    os.mkfifo(tmp_path / "a_0001.nii.gz")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("a_0002.nii.gz")
        found = reasons(tmp_path)
    assert found["a_0000.nii.gz"].startswith("is a folder, not an image file.")
    assert found["a_0001.nii.gz"] == found["a_0002.nii.gz"]
    assert "socket, a pipe or a device" in found["a_0002.nii.gz"]
    assert scan_folder(tmp_path, ENDING).images == ()


def test_a_file_without_permission(open_folder):
    touch(open_folder, "a_0000.nii.gz", "a_0001.nii.gz")
    (open_folder / "a_0001.nii.gz").chmod(0)
    with without_permissions():
        contents = scan_folder(open_folder, ENDING)
    assert [path.name for path in contents.images] == ["a_0000.nii.gz"]
    (scan,) = contents.unusable
    assert scan.reason == "cannot be opened: no permission. Make it readable, or leave it out."


def test_what_the_file_system_says_is_passed_on(tmp_path, monkeypatch):
    touch(tmp_path, "a_0000.nii.gz")

    def stale(path, *_, **__):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patches:
        patches.setattr(os, "open", stale)
        assert reasons(tmp_path)["a_0000.nii.gz"].startswith("cannot be opened: Stale file handle.")
    with monkeypatch.context() as patches:
        patches.setattr(os, "stat", stale)
        assert why_unusable(tmp_path / "a_0000.nii.gz") == "cannot be reached: Stale file handle."


def test_a_folder_that_cannot_be_listed_is_one_error(open_folder):
    with pytest.raises(UserError, match="none cannot be read: No such file"):
        scan_folder(open_folder / "none", ENDING)
    open_folder.chmod(0)
    with without_permissions(), pytest.raises(UserError, match=f"The folder {open_folder} cannot be read: no perm"):
        scan_folder(open_folder, ENDING)


CONVERT = "Convert it to a_0002.nii.gz (do not just rename it"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a_0002.nii", f"ends with '.nii', this dataset's files with '.nii.gz'. {CONVERT}"),
        ("a_0002.mha", CONVERT),
        ("a_0002.mgz", CONVERT),
        ("a_0002.dcm", CONVERT),
        ("a_0002.IMG", CONVERT),
        ("a_0002.tiff", CONVERT),
        ("a_0002 copy.nii", CONVERT),
        ("a_0002.NII.GZ", "ends with '.NII.GZ', this dataset's files with '.nii.gz'. Rename it to a_0002.nii.gz."),
        ("a_0002.nii.Gz", "Rename it to a_0002.nii.gz."),
        ("a_0002.nii.gz.part", "is an unfinished download ('.part'). Finish it"),
        ("a_0002.nii.gz.crdownload", "unfinished download ('.crdownload')"),
        ("a_0002.nii.gz.bak", "Rename it to a_0002.nii.gz if it is a complete image"),
        ("a_0002.nii.gz.zip", "Unpack it into a_0002.nii.gz."),
    ],
)
def test_names_that_miss_the_ending(tmp_path, name, words):
    touch(tmp_path, name, "a_0001.nii.gz")
    (scan,) = scan_folder(tmp_path, ENDING).unusable
    assert (scan.path.name, scan.case, scan.channel) == (name, "a", 2)
    assert words in scan.reason
    touch(tmp_path, "a_0002.nii.gz")  # then it is no scan that goes unnoticed
    assert not reasons(tmp_path)


@pytest.mark.parametrize(
    ("ending", "name", "words"),
    [
        (".nii", "p_0000.nii.gz", "Unpack it into p_0000.nii."),
        (".png", "p_0000.PNG", "Rename it to p_0000.png."),
        (".mha", "p_0000.nii.gz", "Convert it to p_0000.mha"),
        (".raw", "p_0000.RAW", "Rename it to p_0000.raw."),
    ],
)
def test_other_datasets_have_other_endings(tmp_path, ending, name, words):
    touch(tmp_path, name)
    assert words in reasons(tmp_path, ending)[name]


@pytest.mark.parametrize("kind", ["folder", "dangling link"])
def test_a_wrong_ending_that_is_no_file_either(tmp_path, kind):
    path = tmp_path / "a_0002.nii"
    path.mkdir() if kind == "folder" else path.symlink_to("/nowhere")
    assert ("is a folder" if kind == "folder" else "link to /nowhere") in reasons(tmp_path)["a_0002.nii"]
    touch(tmp_path, "a_0002.nii.gz")
    assert not reasons(tmp_path)


def test_an_unfinished_download_that_is_a_folder(tmp_path):
    (tmp_path / "a_0002.nii.gz.download").mkdir()
    assert "unfinished download" in reasons(tmp_path)["a_0002.nii.gz.download"]


def test_sidecars_and_names_without_channel_are_no_scans(tmp_path):
    names = [f"a_0000.{ending}" for ending in ("json", "txt", "bval", "bvec", "csv", "xml", "npz", "pkl")]
    names += [
        "a.json",
        "a_0000.nii.gz.md5",
        "a_0000.nii.json",
        "a_00025.nii",
        "a_002.nii",
        "a.nii",
        "_0002.nii",
        "b.png",
    ]
    touch(tmp_path, *names)
    contents = scan_folder(tmp_path, ENDING)
    assert contents.images == contents.unusable == ()
    assert contents.others == tuple(sorted(names))


def test_the_channel_is_the_last_suffix(tmp_path):
    touch(tmp_path, "scan_0007_0001.nii", "b_10_0003.nii")
    assert [(scan.case, scan.channel) for scan in scan_folder(tmp_path, ENDING).unusable] == [
        ("b_10", 3),
        ("scan_0007", 1),
    ]


def test_hidden_files_are_apart(tmp_path):
    touch(tmp_path, "._a_0000.nii.gz", ".DS_Store", "._a_0001.nii", "a_0000.nii.gz")
    contents = scan_folder(tmp_path, ENDING)
    assert [path.name for path in contents.images] == ["a_0000.nii.gz"]
    assert [path.name for path in contents.hidden] == ["._a_0000.nii.gz"]
    assert contents.unusable == contents.others == ()


def test_labels_have_no_suffix(tmp_path):
    touch(tmp_path, "a.nii.gz", "a.nii", "b.nii", "c.NII.GZ", "dataset.json", "e.b.mha", "summary.txt")
    (tmp_path / "d.nii.gz").symlink_to("/nowhere")
    contents = scan_folder(tmp_path, ENDING, suffixed=False)
    assert [path.name for path in contents.images] == ["a.nii.gz"]
    assert [(scan.case, scan.channel) for scan in contents.unusable] == [
        (case, None) for case in ("b", "c", "d", "e.b")
    ]
    found = reasons(tmp_path, suffixed=False)
    assert "Convert it to b.nii.gz" in found["b.nii"] and "Rename it to c.nii.gz." in found["c.NII.GZ"]


@pytest.mark.parametrize("suffixed", [True, False])
def test_one_case_of_many(tmp_path, monkeypatch, suffixed):
    middle = "_0000" if suffixed else ""
    names = [f"{case}{middle}{end}" for case in ("a", "ab", "a_b", "b") for end in (".nii", ".nii.gz.part")]
    touch(tmp_path, *names)
    (scan, other) = scan_folder(tmp_path, ENDING, suffixed=suffixed, case="a").unusable
    assert {scan.path.name, other.path.name} == {f"a{middle}.nii", f"a{middle}.nii.gz.part"}


def test_files_of_other_cases_are_not_even_opened(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{case}_0000.nii.gz" for case in "abc"))
    looked_at = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, *args, **more: looked_at.append(path) or stat(path, *args, **more))
    assert len(scan_folder(tmp_path, ENDING, case="b").images) == 1
    assert [Path(path).name for path in looked_at] == ["b_0000.nii.gz"]


def test_numbers_and_lists_in_words():
    assert [counted(number, "problem") for number in (0, 1, 5)] == ["0 problems", "1 problem", "5 problems"]
    assert counted(2, "case is", "cases are") == "2 cases are"
    assert listed(["x", "y"]) == listed(["x", "y"], most=2) == "  - x\n  - y"
    assert listed("xyz", most=1) == "  - x\n  - and 2 more"


def test_a_second_image_of_a_scan_that_is_there_is_told(tmp_path):
    for name in ("a_0000.nii.gz", "a_0000.nii", "a_0001.nii.gz"):
        (tmp_path / name).touch()
    contents = scan_folder(tmp_path, ".nii.gz")
    assert [path.name for path in contents.duplicates] == ["a_0000.nii"] and not contents.unusable
