"""`unimrseg import`: a raw dataset made of files that have names of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.nnunet.dataset_json import read_dataset_json

NAMES = ("t2f=FLAIR", "t1n=T1", "t1c=T1ce")


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """Three patients: a has everything, b lacks a scan, c has one scan and no label."""
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    for case, kinds in (("a", ("t2f", "t1n", "t1c", "seg")), ("b", ("t2f", "t1c", "seg")), ("c", ("t1n",))):
        (tmp_path / "tree" / case).mkdir(parents=True)
        for kind in kinds:
            (tmp_path / "tree" / case / f"{case}-{kind}.nii.gz").write_text(f"{case} {kind}")
    return tmp_path / "tree"


def run(tree: Path, *more: str, code: int = 0, **changes: object) -> Path:
    given: dict[str, object] = {
        "-i": tree,
        "-d": 600,
        "--name": "Brain",
        "--pattern": "{case}/{case}-{modality}.nii.gz",
        "--names": NAMES,
        "--label-pattern": "{case}/{case}-seg.nii.gz",
        "--labels": ("background=0", "oedema=2", "core=1"),
    }
    given |= {f"--{flag}".replace("_", "-") if len(flag) > 1 else f"-{flag}": value for flag, value in changes.items()}
    words = []
    for flag, value in given.items():
        if value is not None:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    assert main(["import", *words, *more]) == code
    return tree.parent / "raw" / "Dataset600_Brain"


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def test_links_lead_to_the_files(tree, capsys):
    made = run(tree)
    assert names_in(made) == [
        "dataset.json", "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/a_0002.nii.gz",
        "imagesTr/b_0000.nii.gz", "imagesTr/b_0002.nii.gz", "imagesTr/c_0001.nii.gz", "labelsTr/a.nii.gz",
        "labelsTr/b.nii.gz",
    ]  # fmt: skip
    link = made / "imagesTr" / "b_0002.nii.gz"
    assert link.is_symlink() and link.readlink() == tree / "b" / "b-t1c.nii.gz" and link.read_text() == "b t1c"
    assert read_dataset_json(made / "dataset.json", raw=True) == {
        "channel_names": {"0": "FLAIR", "1": "T1", "2": "T1ce"},
        "labels": {"background": 0, "oedema": 2, "core": 1},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[-4:] == [["FLAIR+T1+T1ce", "1", "1"], ["FLAIR+T1ce", "1", "1"], ["T1", "1", "0"], ["all", "3", "2"]]
    assert [entry.name for entry in made.parent.iterdir()] == [made.name]


def test_copies_regions_and_the_order_of_the_modalities(tree):
    made = run(tree, "--copy", labels=("background=0", "whole=1,2", "core=1"), modalities=("T1ce", "T1", "FLAIR"))
    copy = made / "imagesTr" / "b_0000.nii.gz"
    assert not copy.is_symlink() and copy.read_text() == "b t1c"
    content = json.loads((made / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "whole": [1, 2], "core": 1} and content["regions_class_order"] == [
        2,
        1,
    ]


def test_the_patient_in_the_names_of_the_cases(tree):
    made = run(tree, patient="([abc])")
    assert json.loads((made / "dataset.json").read_text())["unimrseg"] == {"patient": "([abc])"}


def test_a_dry_run_writes_nothing(tree, capsys):
    made = run(tree, "--dry-run")
    printed = capsys.readouterr().out
    assert f"{made} would get 8 files" in printed and f"labelsTr/a.nii.gz: {tree / 'a' / 'a-seg.nii.gz'}" in printed
    assert '"numTraining": 3' in printed and not made.parent.exists()


@pytest.mark.parametrize("existing", ["raw/Dataset600_Other", "results/Dataset600_Other", "raw/Dataset007_Brain"])
def test_an_existing_dataset_is_refused(tree, capsys, existing):
    (tree.parent / existing).mkdir(parents=True)
    made = run(tree, code=2)
    message = capsys.readouterr().err
    assert existing.split("/")[1] in message and ("-d 600" if "007" in existing else "-d 601") in message
    assert not made.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d": 0}, "from 1 to 999"),
        ({"patient": "[abc]"}, "has no group"),
        ({"patient": "([ab])"}, "does not match the case 'c'"),
        ({"name": "my/brain"}, "must consist of letters"),
        ({"i": "/nowhere"}, "There is no input folder /nowhere"),
        ({"pattern": "{case}/{modality}"}, "must end with the ending of the files"),
        ({"names": None}, "Give --modalities, or --names"),
        ({"names": ("t2f",)}, "--names has 't2f'"),
        ({"names": ("t2f=FLAIR", "t2f=T1")}, "names 't2f' twice"),
        ({"names": ("t2f=FLAIR", "t1n=T1")}, "1 modality is unknown: 't1c' (2 files)"),
        ({"names": ("t1n=T1",)}, "Nothing can be missing"),
        ({"labels": ("oedema=1",)}, '"labels" has no "background"'),
        ({"labels": ("background=0", "oedema=two")}, '"two"'),
        ({"label_pattern": "{case}/{case}-ref.nii.gz"}, "'seg' (2 files)"),
        ({"label_pattern": "{case}/{modality}.nii.gz"}, "must not have {modality}"),
        ({"label_pattern": "{case}/{case}-ref.nii.gz", "ignore": ("*-seg*",)}, "fits the pattern of the labels"),
        ({"ignore": ("*t2f*", "*t1*")}, "No file in"),
        ({"ignore": ("b/b-t*",)}, "b-seg.nii.gz is the label of a case without scans, 'b'"),
    ],
)
def test_each_mistake_is_one_message(tree, capsys, changes, words):
    made = run(tree, code=2, **changes)
    message = capsys.readouterr().err
    assert words in message and "Traceback" not in message
    assert not made.parent.exists()


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(1, "Operation not permitted"), 2)])
def test_what_is_interrupted_leaves_nothing(tree, capsys, monkeypatch, error, code):
    link, calls = Path.symlink_to, []

    def interrupted(self: Path, target: str) -> None:
        calls.append(self)
        if len(calls) == 5:
            raise error
        link(self, target)

    monkeypatch.setattr(Path, "symlink_to", interrupted)
    made = run(tree, code=code)
    assert len(calls) == 5 and list(made.parent.iterdir()) == []
    assert ("--copy" in capsys.readouterr().err) == (code == 2)
