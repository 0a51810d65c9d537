from __future__ import annotations

import base64
import dataclasses
import io
import math

import numpy as np
import pytest
import SimpleITK
from evaluations import made_up
from PIL import Image
from report_phantom import phantom_evaluation

from nnunetv2_unimrseg.data.phantom import MODALITIES
from nnunetv2_unimrseg.reports.case_images import (
    CaseImages,
    background_modality,
    enlarged,
    intensity_window,
    label_colours,
    label_mask,
    label_values,
    largest_slice,
    overlay,
    read_case_images,
)
from nnunetv2_unimrseg.reports.montage import (
    case_dice,
    legend_labels,
    modalities_by_cost,
    shown_subsets,
    write_montage,
)
from nnunetv2_unimrseg.reports.tables import describe_subset
from nnunetv2_unimrseg.reports.viewer import shown_slices, viewer_case, viewer_cases

COMPLETE = "FLAIR+T1+T1ce+T2"


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    return phantom_evaluation(tmp_path_factory.mktemp("phantom"), 2, shape=(24, 28, 22), spacing=(2.0, 3.0, 4.0))


def picture(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def test_a_case_is_read_with_slices_first_and_without_empty_margins(evaluation):
    entry = evaluation.settings["cases"][0]
    case = read_case_images(evaluation, entry, [COMPLETE, "T1"])
    assert list(case.images) == list(MODALITIES)
    assert case.aspect == pytest.approx(3.0 / 2.0)
    whole = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(entry["images"]["T1"]))
    body = (whole > 0).any(axis=0)
    rows, columns = (np.flatnonzero(body.any(axis=axis)) for axis in (1, 0))
    assert whole.shape == (22, 28, 24) and len(rows) < 28
    expected = whole[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_array_equal(case.images["T1"], expected)
    assert case.reference.shape == case.predictions["T1"].shape == expected.shape


def test_nothing_labelled_is_cut_off_with_the_margins(tmp_path):
    label = np.zeros((3, 12, 12), np.uint8)
    label[1, 2, 9] = 1
    image = np.zeros((3, 12, 12), np.float32)
    image[:, 5:8, 4:6] = 1.0
    evaluation = made_up(["CT", "PET"], ["spot"], num_cases=1, folder=tmp_path)
    paths = [tmp_path / "label.nii.gz", evaluation.prediction_path("case_00", "CT")]
    paths[1].parent.mkdir(parents=True)
    for array, path in ((label, paths[0]), (label, paths[1]), (image, tmp_path / "image.nii.gz")):
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(path))
    entry = {"case": "case_00", "images": {"CT": str(tmp_path / "image.nii.gz")}, "label": str(paths[0])}
    case = read_case_images(evaluation, entry, ["CT"])
    assert case.reference.shape == (3, 6, 6)
    assert case.reference.sum() == 1 and case.images["CT"].sum() == image.sum()
    label[0] = 9  # the ignore label
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(label), str(paths[0]))
    evaluation.settings["label_values"] = {"spot": 1}
    case = read_case_images(evaluation, entry, ["CT"])
    assert largest_slice(case.reference) == 1 and set(np.unique(case.reference)) == {0, 1}


def test_a_case_without_a_modality_is_read_and_one_whose_files_are_gone_is_an_error_that_names_them(evaluation):
    entry = evaluation.settings["cases"][0]
    without = {**entry, "images": {name: path for name, path in entry["images"].items() if name != "T1"}}
    assert "T1" not in read_case_images(evaluation, without, ["T2"]).images
    with pytest.raises(FileNotFoundError, match=r"nowhere/label\.nii"):
        read_case_images(evaluation, {**entry, "label": "nowhere/label.nii"}, ["T2"])
    with pytest.raises(FileNotFoundError, match=r"nowhere/T1\.nii"):
        read_case_images(evaluation, {**entry, "images": {"T1": "nowhere/T1.nii"}}, ["T2"])
    with pytest.raises(FileNotFoundError, match="no prediction"):
        read_case_images(evaluation, {**entry, "case": "unknown"}, ["T2"])


def test_a_natural_image_is_one_slice(tmp_path):
    evaluation = made_up(["red", "blue"], ["spot"], num_cases=1, folder=tmp_path)
    settings = evaluation.settings | {"reader": "NaturalImage2DIO", "file_ending": ".png", "label_values": {"spot": 1}}
    evaluation = dataclasses.replace(evaluation, settings=settings)
    shape = (20, 30)
    label = np.zeros(shape, np.uint8)
    label[5:12, 8:20] = 1
    files = [tmp_path / "label.png", *(evaluation.prediction_path("case_00", name) for name in evaluation.subsets)]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label).save(path)
    images = {name: tmp_path / f"{name}.png" for name in evaluation.modalities}
    for path in images.values():
        Image.fromarray(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)).save(path)
    entry = {"case": "case_00", "images": {k: str(v) for k, v in images.items()}, "label": str(files[0])}
    case = read_case_images(evaluation, entry, list(evaluation.subsets))
    assert case.reference.shape == (1, *shape) and case.aspect == 1
    dice, costs = case_dice(evaluation), modalities_by_cost(evaluation)
    write_montage(evaluation, case, list(evaluation.subsets), dice, costs, tmp_path / "case.png")
    assert np.asarray(Image.open(tmp_path / "case.png")).std() > 10
    assert viewer_case(evaluation, case, list(evaluation.subsets), dice, costs, 1e6)["slices"] == [0]


def test_an_overlay_shows_the_smaller_of_two_overlapping_regions_on_top_with_opaque_outlines():
    segmentation = np.zeros((40, 40), int)
    segmentation[4:36, 4:36] = 1
    segmentation[14:26, 14:26] = 2
    shown = overlay(segmentation, {"core": [2], "whole": [1, 2]}, {"core": "#0000ff", "whole": "#ff0000"})
    assert tuple(shown[0, 0]) == (0, 0, 0, 0)
    assert tuple(shown[4, 20]) == (255, 0, 0, 255) and tuple(shown[14, 20]) == (0, 0, 255, 255)
    assert tuple(shown[9, 20, :3]) == (255, 0, 0) and 0 < shown[9, 20, 3] < 255
    assert tuple(shown[20, 20, :3]) == (0, 0, 255) and 0 < shown[20, 20, 3] < 255


def test_without_recorded_values_everything_above_zero_is_one_lesion():
    evaluation = made_up()
    assert label_values(evaluation) == {"lesion": []}
    assert label_mask(np.array([0, 1, 3]), []).tolist() == [False, True, True]
    recorded = {"edema": [1, 2, 3], "non_enhancing_tumour": [2, 3], "enhancing_tumour": 3}
    settings = {**evaluation.settings, "label_values": recorded}
    assert label_values(dataclasses.replace(evaluation, settings=settings))["enhancing_tumour"] == [3]


def test_every_label_has_a_colour_of_its_own():
    for number in (1, 7, 8, 30):
        assert len(set(label_colours([str(name) for name in range(number)]).values())) == number


def test_the_window_spans_the_body_and_a_constant_image_has_one_too():
    image = np.zeros((10, 10, 10))
    image[2:8, 2:8, 2:8] = np.linspace(50, 150, 216).reshape(6, 6, 6)
    low, high = intensity_window(image)
    assert low == 0 and 140 < high < 150
    low, high = intensity_window(np.full((3, 3, 3), 7.0))
    assert low < high


def test_the_slice_with_most_reference_is_found_and_always_among_those_shown():
    reference = np.zeros((40, 8, 8), int)
    reference[5:35, 2:4, 2:4] = 1
    reference[17, 1:7, 1:7] = 1
    assert largest_slice(reference) == 17
    for most in (1, 2, 7, 100):
        slices = shown_slices(reference, most)
        assert 17 in slices and len(slices) <= most and set(slices) <= set(range(5, 35))
    assert shown_slices(reference, 100) == list(range(5, 35))
    assert largest_slice(np.zeros((9, 2, 2))) == 4


def test_predictions_are_drawn_on_a_modality_that_they_were_made_from(evaluation):
    costs = modalities_by_cost(evaluation)
    assert sorted(costs) == sorted(MODALITIES)
    for subset in evaluation.settings["subsets"]:
        chosen = background_modality(subset["available"], list(MODALITIES), costs)
        assert chosen == min(subset["available"], key=costs.index)
    assert background_modality(["T1"], ["T2"], costs) == "T2"


def test_all_of_few_subsets_are_shown_and_of_many_the_complete_leave_one_out_and_single_ones():
    assert len(shown_subsets(made_up(["A", "B", "C"]))) == 7
    four = made_up()
    assert shown_subsets(four)[0] == COMPLETE
    assert sorted(sum(four.subsets[name]) for name in shown_subsets(four)) == [1] * 4 + [3] * 4 + [4]
    many = made_up([f"M{number}" for number in range(8)], ["a"], num_cases=1)
    assert len(shown_subsets(many)) == 11 and shown_subsets(many)[0] == many.complete


def test_subsets_are_named_in_few_words():
    modalities = made_up().modalities
    words = {name: describe_subset(modalities, subset) for name, subset in made_up().subsets.items()}
    assert words[COMPLETE] == "all modalities" and words["T1"] == "only T1"
    assert words["FLAIR+T1ce+T2"] == "without T1" and words["FLAIR+T1"] == "FLAIR+T1"


def test_the_viewer_shows_the_worst_the_median_and_the_best_case():
    evaluation = made_up(num_cases=7)
    means = evaluation.scores.groupby("case")["dice"].mean().sort_values()
    chosen = viewer_cases(evaluation)
    assert {why: case for case, why in chosen.items()} == {
        "worst": means.index[0], "median": means.index[3], "best": means.index[-1]
    }  # fmt: skip
    assert len(viewer_cases(made_up(num_cases=1))) == 1 and len(viewer_cases(made_up(num_cases=2))) == 2


def test_the_viewers_pictures_are_of_the_case_and_fit_the_bound(evaluation):
    entry = evaluation.settings["cases"][0]
    subsets = shown_subsets(evaluation)
    case = read_case_images(evaluation, entry, subsets)
    dice, costs = case_dice(evaluation), modalities_by_cost(evaluation)
    shown = viewer_case(evaluation, case, subsets, dice, costs, 1e9)
    assert list(shown["subsets"]) == subsets
    assert shown["slices"][shown["start"]] == largest_slice(case.reference)
    _, height, width = case.reference.shape
    assert shown["ratio"] == pytest.approx((width * 2) / (height * 3))
    reference = picture(shown["reference"][shown["start"]])
    factor = reference.shape[1] // width
    mask = case.reference[largest_slice(case.reference)] > 0
    np.testing.assert_array_equal(reference[..., 3] > 0, enlarged(mask, factor))
    grey = picture(shown["images"]["T1"][shown["start"]])
    assert np.corrcoef(grey[..., 0].ravel(), case.images["T1"][largest_slice(case.reference)].ravel())[0, 1] > 0.95
    assert shown["subsets"]["T1"]["dice"] == round(100 * dice[entry["case"], "T1"], 1)

    def size(of):
        pictures = [of["reference"], *of["images"].values(), *(entry["pictures"] for entry in of["subsets"].values())]
        return sum(len(uri) for uris in pictures for uri in uris)

    bound = size(shown) / 3
    fewer = viewer_case(evaluation, case, subsets, dice, costs, bound)
    assert size(fewer) <= bound and 1 <= len(fewer["slices"]) < len(shown["slices"])
    assert fewer["slices"][fewer["start"]] == largest_slice(case.reference)


def test_a_montage_is_as_large_as_its_panels_and_shows_what_it_is_given(evaluation, tmp_path):
    entry = evaluation.settings["cases"][0]
    subsets = shown_subsets(evaluation)
    case = read_case_images(evaluation, entry, subsets)
    dice, costs = case_dice(evaluation), modalities_by_cost(evaluation)
    write_montage(evaluation, case, subsets, dice, costs, tmp_path / "case.png")
    nothing = dataclasses.replace(case, predictions={name: np.zeros_like(case.reference) for name in subsets})
    write_montage(evaluation, nothing, subsets, dice, costs, tmp_path / "nothing.png")
    full, empty = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("case", "nothing"))
    assert full.shape == empty.shape and full.shape[0] < 3000
    changed = (full != empty).any(axis=(1, 2))
    top = full.shape[0] // 3
    assert changed[top:].any() and not changed[: top - 40].any()


def test_a_legend_names_the_labels_that_are_shown_and_of_many_the_largest():
    values = {f"label {number}": [number] for number in range(1, 105)}
    assert legend_labels(np.array([[0, 3], [99, 3]]), values) == (["label 3", "label 99"], 0)
    assert legend_labels(np.zeros((2, 2), int), values) == ([], 0)
    everything = np.repeat(np.arange(105), np.arange(1, 106))
    named, num_more = legend_labels(everything, values)
    assert named == [f"label {number}" for number in range(93, 105)] and num_more == 92


@pytest.mark.parametrize("length", [1, 60])
def test_images_keep_their_size_however_many_labels_there_are(tmp_path, monkeypatch, length):
    from matplotlib.figure import Figure

    figures = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (savefig(self, *a, **k), figures.append(self)))
    for number in (1, 104):
        names = [f"{label:03d}".ljust(length, "x") for label in range(1, number + 1)]
        evaluation = made_up(["CT", "PET"], names, num_cases=1)
        evaluation.settings["label_values"] = {name: int(name[:3]) for name in names}
        label = np.arange(30 * 40).reshape(1, 30, 40) % (number + 1)
        images = {name: np.arange(30.0 * 40).reshape(1, 30, 40) for name in ("CT", "PET")}
        case = CaseImages("case_00", images, label, dict.fromkeys(evaluation.subsets, label), 1.0)
        write_montage(evaluation, case, list(evaluation.subsets), {}, ["CT", "PET"], tmp_path / "case.png")
    few, many = ([axis.get_window_extent() for axis in figure.axes] for figure in figures)
    for one, other in zip(few, many, strict=True):
        assert other.width == pytest.approx(one.width, rel=0.1) and other.height == pytest.approx(one.height, rel=0.1)
    (legend,) = figures[1].legends
    assert legend.get_texts()[-1].get_text() == "and 92 more" and len(legend.get_texts()) == 13
    extent, whole = legend.get_window_extent(), figures[1].bbox
    assert extent.x0 >= 0 and extent.x1 <= whole.width and extent.y0 >= 0


def test_a_case_without_dice_or_reference_is_drawn(tmp_path):
    evaluation = made_up(["CT", "PET"], ["spot"], num_cases=1)
    empty = np.zeros((4, 6, 5), int)
    case = CaseImages("case_00", {"PET": np.ones((4, 6, 5))}, empty, {"CT": empty, "CT+PET": empty}, 1.0)
    dice = {("case_00", "CT"): math.nan}
    write_montage(evaluation, case, ["CT+PET", "CT", "PET"], dice, ["CT", "PET"], tmp_path / "case.png")
    shown = viewer_case(evaluation, case, ["CT+PET", "CT", "PET"], dice, ["CT", "PET"], 1e6)
    assert shown["subsets"]["CT"]["dice"] is None and list(shown["subsets"]) == ["CT+PET", "CT"]
