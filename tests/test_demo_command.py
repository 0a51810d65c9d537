"""`unimrseg demo`: where the phantom is written, and what is refused."""

import pytest

from nnunetv2_unimrseg.cli.main import main


@pytest.fixture
def raw(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    for variable in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return folder


SMALL = ("-n", "1", "--unseen", "1", "--shape", "20", "24", "20")


def test_writes_the_dataset_and_names_the_next_commands(raw, capsys):
    assert main(["demo", "-d", "12", *SMALL]) == 0
    assert len(list((raw / "Dataset012_UniMRSegPhantom" / "imagesTs").iterdir())) == 4
    printed = capsys.readouterr().out
    for command in ("unimrseg plan -d 12", "unimrseg train 12", "unimrseg predict", "unimrseg evaluate"):
        assert command in printed
    assert "unimrseg configure -d 12 -c 3d_fullres -p nnUNetUniMRSegPlans --recipe short" in printed


def test_refuses_to_write_twice(raw, capsys):
    assert main(["demo", *SMALL]) == 0
    assert main(["demo", *SMALL]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["nnUNet_raw", "nnUNet_results"])
def test_refuses_a_number_that_another_dataset_has(raw, capsys, monkeypatch, where):
    monkeypatch.setenv("nnUNet_results", str(raw.parent / "results"))
    taken = raw.parent / ("raw" if where == "nnUNet_raw" else "results") / "Dataset900_Other"
    taken.mkdir(parents=True)
    assert main(["demo", *SMALL]) == 2
    assert "Dataset900_Other" in capsys.readouterr().err
    assert not (raw / "Dataset900_UniMRSegPhantom").exists()


@pytest.mark.parametrize("number", ["0", "1000"])
def test_refuses_a_number_that_nnunet_cannot_have(raw, capsys, number):
    assert main(["demo", "-d", number, *SMALL]) == 2
    assert f"found {number}" in capsys.readouterr().err
    assert list(raw.iterdir()) == []


def test_says_which_variable_is_not_set(capsys, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["demo", *SMALL]) == 2
    assert "nnUNet_raw" in capsys.readouterr().err
