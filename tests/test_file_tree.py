"""Files in a folder tree, found by patterns: what fits, what is unused and what is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnunetv2_unimrseg.data.file_patterns import FilePattern, IgnorePattern
from nnunetv2_unimrseg.data.file_tree import find_files, read_layout
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities

MODALITIES = Modalities(("FLAIR", "T1", "T1ce", "T2"))
NAMES = {"t2f": "FLAIR", "t1n": "T1", "t1c": "T1ce", "t2w": "T2"}
PATTERN = "{case}/{case}-{modality}.nii.gz"


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        (PATTERN, "B-1/B-1-t1n.nii.gz", ("B-1", "t1n")),
        (PATTERN, "B-1/B-2-t1n.nii.gz", None),
        (PATTERN, "x/B-1/B-1-t1n.nii.gz", None),
        ("{case}_{modality}.nii.gz", "B_1_T1ce.nii.gz", ("B_1", "T1ce")),
        ("{case}_{modality}.nii.gz", "B_1_T1_ce.nii.gz", ("B_1", "T1_ce")),
        ("{modality}/{case}.nii.gz", "T2/B.1.nii.gz", ("B.1", "T2")),
        ("./*/ses-*/{case}_{modality}.nii.gz", "s/ses-1/B_T1.nii.gz", ("B", "T1")),
        ("{case}-{modality}.nii.gz", "B-T1xnii.gz", None),
    ],
)
def test_what_fits_a_pattern(pattern, path, fields):
    found = FilePattern(pattern, spellings=("T1", "T1_ce")).match(path)
    assert found == (None if fields is None else dict(zip(("case", "modality"), fields, strict=True)))


def test_a_pattern_to_ignore_without_a_slash_fits_in_every_folder():
    assert IgnorePattern("*-seg.nii.gz").match("a/b/c-seg.nii.gz") is not None
    assert IgnorePattern("a/*-seg.nii.gz").match("a/b/c-seg.nii.gz") is None
    assert IgnorePattern("*-seg.nii.gz").match("c-seg.nii.gz.md5") is None


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("/data/{case}-{modality}.nii.gz", "starts with a slash"),
        ("{cse}-{modality}.nii.gz", "has {cse}. Did you mean 'case'?"),
        ("{case-{modality}.nii.gz", "{case-{modality}"),
        ("case}-{modality}.nii.gz", "brace"),
        ("{case}.nii.gz", "lacks {modality}"),
        ("T1.nii.gz", "lacks {case} and {modality}"),
        ("{case}-{modality}", "must end with '.nii.gz'"),
    ],
)
def test_wrong_patterns_are_refused(pattern, words):
    with pytest.raises(UserError) as caught:
        read_layout(pattern, {}, MODALITIES, ".nii.gz")
    assert words in str(caught.value)


def make(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x")
    return folder


def search(folder: Path, pattern: str = PATTERN, names=NAMES, ignored=(), label_pattern=None):
    return find_files(folder, read_layout(pattern, names, MODALITIES, ".nii.gz", ignored, label_pattern))


def refused(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        search(*arguments, **keywords)
    return str(caught.value)


def test_cases_labels_links_and_unused_files(tmp_path, capsys):
    tree = make(
        tmp_path / "tree", "B-2/B-2-t2f.nii.gz", "B-2/B-2-T1c.nii.gz", "B-2/B-2-seg.nii.gz", "B-1/B-1-t2.nii.gz",
        "B-1/B-9-t2.nii.gz", ".hidden/B-3-t2.nii.gz", "B-1/._B-1-t1.nii.gz", "B-1/notes.txt", "B-1/B-1-t2.nii",
    )  # fmt: skip
    elsewhere = make(tmp_path / "elsewhere", "B-0-t1.nii.gz")
    (tree / "B-0").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(tree)
    found = search(tree, label_pattern="{case}/{case}-seg.nii.gz")
    assert list(found.cases) == ["B-0", "B-1", "B-2"]
    assert found.cases["B-2"] == {"FLAIR": f"{tree}/B-2/B-2-t2f.nii.gz", "T1ce": f"{tree}/B-2/B-2-T1c.nii.gz"}
    assert found.cases["B-0"] == {"T1": f"{tree}/B-0/B-0-t1.nii.gz"}
    assert found.labels == {"B-2": f"{tree}/B-2/B-2-seg.nii.gz"}
    unused = [path for path in found.unused if not path.startswith("B-0/circle")]
    assert unused == ["B-1/B-9-t2.nii.gz", "B-1/B-1-t2.nii"]
    found.unused = [f"{number}.nii.gz" for number in range(25)]
    found.print_unused()
    assert "25 images fit no pattern" in (printed := capsys.readouterr().out) and "and 5 more" in printed
    assert not search(tree, ignored=["*-seg.nii.gz", "B-1/B-9*", "*.nii", "B-0/circle/*/*"]).unused


def test_all_problems_are_one_error(tmp_path):
    tree = make(
        tmp_path, "a/a-t1.nii.gz", "a/a-T1.nii.gz", "a/a-t1x.nii.gz", "b/b-seg.nii.gz", "c/c-seg.nii.gz",
        "d/d-t2.NII.GZ", "e/e-t2.nii.gz.part", "f/f-t2.nii.gz/x",
    )  # fmt: skip
    (tree / "g").mkdir()
    (tree / "g" / "g-t2.nii.gz").symlink_to("/unmounted/x.nii.gz")
    message = refused(tree)
    assert "6 problems" in message and "case 'a': T1 has two files" in message
    assert "2 modalities are unknown: 'seg' (2 files), 't1x' (1 file)" in message and "Did you mean 'T1'" in message
    assert "Rename it to d-t2.nii.gz" in message and "unfinished download" in message
    assert "f-t2.nii.gz: is a folder" in message and "/unmounted/x.nii.gz, which does not exist" in message


def test_nothing_that_fits_wrong_names_and_folders(tmp_path):
    make(tmp_path, "a_t1.nii.gz")
    assert "Files that end with '.nii.gz' there: a_t1.nii.gz." in refused(tmp_path)
    assert "There is no input folder" in refused(tmp_path / "absent")
    message = refused(tmp_path, names={"t1c": "T1cee", "t2f": "FLARE"})
    assert "--names t1c=T1cee" in message and "'T1ce'" in message and "'FLAIR'" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read(tmp_path):
    make(tmp_path, "a/a-t1.nii.gz", "b/b-t1.nii.gz")
    (tmp_path / "b").chmod(0)
    try:
        assert f"The folder {tmp_path}/b cannot be read" in refused(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o700)
