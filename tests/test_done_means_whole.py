"""Done means whole: a second run does again exactly what is damaged, and every format is whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reconstructors
import tiny
import trained
from full_disk import files_in, fill, full_disk  # noqa: F401 (a fixture)
from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name
from test_full_disk import QUICK, dataset, patients, run  # noqa: F401 (fixtures)

from nnunetv2_unimrseg.data.segmentation_writer import WholeSegmentationWriter
from nnunetv2_unimrseg.data.whole_image import segmentation_problem, written_image_problem
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.reconstruction.writing import write_image


def cut(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


def redone(folder: Path, before: dict[str, int]) -> set[str]:
    return {name for name, time in files_in(folder).items() if before[name] != time}


def test_predict_with_c_does_exactly_what_is_not_whole(patients, tmp_path, capsys):  # noqa: F811
    for name in "de":
        tiny.write_case(tmp_path / "patients", name, tiny.image(2))
    model, out = trained.write_model(tmp_path / "results"), tmp_path / "out"
    command = ("predict", "-i", patients, "-o", out, "-m", model, *QUICK, "--no_report", "--save_probabilities")
    assert run(capsys, *command)[0] == 0
    whole = contents(out)
    for name in ("a.nii.gz", "b.npz", "c.pkl"):
        cut(out / name)
    (out / "d.npz").unlink()
    before = {**files_in(out), "d.npz": 0}
    code, said, _ = run(capsys, *command, "--c")
    assert code == 0
    for name in ("a.nii.gz", "b.npz", "c.pkl"):
        assert f"{out / name} is not whole: " in said
    assert said.count("It is predicted again.") == 3
    cases = {name for name in redone(out, before) if not name.endswith(".json")}
    assert cases == {f"{case}{ending}" for case in "abcd" for ending in (".nii.gz", ".npz", ".pkl")}
    for name in cases:
        assert (out / name).read_bytes() == whole[name] or name.endswith(".npz"), name
    before = files_in(out)
    assert run(capsys, *command, "--c")[0] == 0 and redone(out, before) == set()


def test_a_second_evaluate_does_exactly_what_is_not_whole(dataset, capsys):  # noqa: F811
    model = trained.write_model(dataset / "results")
    command = ("evaluate", "-m", model, *QUICK, "--subsets", "T1", "CT", "--no_report", "--no_store")
    assert run(capsys, *command)[0] == 0
    out = model / "evaluation_folds_0"
    whole = contents(out)
    record = next(name for name in whole if name.startswith("scores/T1/") and "a" in Path(name).name)
    cut(out / record)
    cut(out / "predictions" / "CT" / "b.nii.gz")
    before = files_in(out)
    code, said, _ = run(capsys, *command)
    assert code == 0 and f"{out}/predictions/CT/b.nii.gz is not whole: it is truncated" in said
    again = {name for name in redone(out, before) if "/" in name}
    assert again == {record, "predictions/T1/a.nii.gz", "predictions/CT/b.nii.gz", "scores/CT/b.json"}
    assert contents(out) == whole


def test_reconstruct_with_c_does_exactly_what_is_not_whole(patients, tmp_path, capsys):  # noqa: F811
    model, out = reconstructors.write_model(tmp_path / "results"), tmp_path / "out"
    command = ("reconstruct", "-i", patients, "-o", out, "-m", model, *QUICK)
    assert run(capsys, *command)[0] == 0
    whole = contents(out)
    cut(out / "a_0003.nii.gz")
    cut(out / "b_reconstruction.png")
    before = files_in(out)
    code, said, _ = run(capsys, *command, "--c")
    assert code == 0 and said.count("is not whole") == 2 and "The case is reconstructed again." in said
    endings = ("_0001.nii.gz", "_0003.nii.gz", "_reconstruction.png")
    assert redone(out, before) - {"modalities.json"} == {f"{case}{ending}" for case in "ab" for ending in endings}
    assert contents(out) == whole


FORMATS = [
    ("SimpleITKIO", ".nii.gz"), ("SimpleITKIO", ".nii"), ("SimpleITKIO", ".mha"), ("SimpleITKIO", ".nrrd"),
    ("SimpleITKIO", ".gipl"), ("NibabelIO", ".nii.gz"), ("Tiff3DIO", ".tif"), ("NaturalImage2DIO", ".png"),
    ("NaturalImage2DIO", ".bmp"), ("NaturalImage2DIO", ".tif"),
]  # fmt: skip


def example(folder: Path, reader_name: str) -> tuple[WholeSegmentationWriter, np.ndarray, dict]:
    """Return nnU-Net's writer of a format, a segmentation, and the properties that it needs to write it."""
    nnunet = recursive_find_reader_writer_by_name(reader_name)
    labels = np.random.default_rng(0).integers(
        0, 3, (1, 120, 150) if reader_name == "NaturalImage2DIO" else (12, 40, 50)
    )
    properties = {"spacing": [3.0, 2.0, 2.5]}
    if reader_name in ("SimpleITKIO", "NibabelIO"):
        given = tiny.write(folder / "given_0000.nii.gz", labels.astype(np.float32))
        properties = nnunet().read_images([given])[1]
    return WholeSegmentationWriter.of(nnunet), labels.astype(np.uint8), properties


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio closes its file once more
@pytest.mark.parametrize(("reader_name", "ending"), FORMATS)
def test_segmentations_of_every_format_are_whole_or_not_there(full_disk, tmp_path, reader_name, ending):  # noqa: F811
    writer, labels, properties = example(tmp_path, reader_name)
    path = tmp_path / "out" / f"a{ending}"
    writer.write_seg(labels, str(path), properties)
    names = {f"a{ending}", "a.json"} if reader_name == "Tiff3DIO" else {f"a{ending}"}
    assert {file.name for file in path.parent.iterdir()} == names
    assert segmentation_problem(path, writer, labels) is None
    assert segmentation_problem(path, writer, labels + 1) == "it reads back otherwise"
    whole = path.read_bytes()
    for share in (0, 0.2, 0.7, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        assert segmentation_problem(path, writer), share
    for pages in (0, 1):
        fill(full_disk, pages)
        with pytest.raises(UserError, match=r"Cannot write .* has 0\.0 MB free\.$"):
            writer.write_seg(labels, str(full_disk / f"a{ending}"), properties)
        assert files_in(full_disk) == {} and not list(full_disk.glob(".*"))
    path.write_bytes(whole)
    if reader_name == "Tiff3DIO":
        cut(path.with_suffix(".json"))
        assert segmentation_problem(path, writer)


@pytest.mark.parametrize(("reader_name", "ending"), FORMATS)
def test_synthetic_scans_of_every_format_are_whole_or_not_there(full_disk, tmp_path, reader_name, ending):  # noqa: F811
    writer, labels, properties = example(tmp_path, reader_name)
    nnunet, image = type(writer._nnunet), np.random.default_rng(1).normal(100, 30, labels.shape).astype(np.float32)
    given = tmp_path / f"given_0000{ending}"
    if reader_name == "NaturalImage2DIO":
        writer.write_seg(labels, str(given), {})
    elif reader_name == "NibabelIO":
        given = tmp_path / "given_0000.nii.gz"
    (tmp_path / "out").mkdir()
    write_image(tmp_path / "out" / f"a_0001{ending}", image, nnunet, properties, "words", given)
    path = tmp_path / "out" / f"a_0001{ending}"
    assert written_image_problem(path) is None
    whole = path.read_bytes()
    for share in (0, 0.2, 0.7, 0.97):
        path.write_bytes(whole[: int(share * len(whole))])
        assert written_image_problem(path), share
    fill(full_disk, 0)
    with pytest.raises(UserError, match="Cannot write"):
        write_image(full_disk / f"a_0001{ending}", image, nnunet, properties, "words", given)
    assert files_in(full_disk) == {} and not list(full_disk.glob(".*"))
