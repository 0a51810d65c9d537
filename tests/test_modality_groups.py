"""Modalities of several channels: names and masks, dataset.json, files, preprocessing, plans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io
from tiny import NAMES

from nnunetv2_unimrseg.data.cases import check_cases, find_cases
from nnunetv2_unimrseg.data.file_tree import find_files, read_layout
from nnunetv2_unimrseg.data.preprocessing import UniMRSegPreprocessor, planned_modalities
from nnunetv2_unimrseg.data.subset_preprocessing import preprocess_subsets
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.arrays import scatter
from nnunetv2_unimrseg.modalities import Modalities, all_subsets
from nnunetv2_unimrseg.nnunet.checkpoints import plans_differences
from nnunetv2_unimrseg.nnunet.dataset_json import check_dataset_json
from nnunetv2_unimrseg.nnunet.modalities_in_plans import MODALITIES_KEY, planned_channels

GROUPS = {"Anatomy": [0, 2], "PET": [1], "T2w": [3]}
GROUPED = Modalities(NAMES, GROUPS)


def dataset_json(groups: object = GROUPS) -> dict:
    return {**tiny.dataset_json(), "unimrseg": {"modalities": groups}}


def plans(groups: object = GROUPS) -> dict:
    made = tiny.plans()
    made["configurations"]["3d_fullres"][MODALITIES_KEY] = groups
    return made


def managers(groups: object = GROUPS):
    plans_manager = PlansManager(plans(groups))
    return plans_manager, plans_manager.get_configuration("3d_fullres")


def test_subsets_are_of_modalities_and_masks_of_channels():
    modalities = Modalities.from_dataset_json(dataset_json({"T2w": [3], "Anatomy": [2, 0], "PET": [1]}))
    assert (modalities.names, modalities.channels) == (("Anatomy", "PET", "T2w"), ((0, 2), (1,), (3,)))
    assert (len(modalities), modalities.num_channels, modalities.channel_names) == (3, 4, NAMES)
    assert modalities.groups == GROUPS
    assert modalities.expand((True, False, True)) == (True, False, True, True)
    assert modalities.collapse((False, False, True, False)) == (True, False, False)
    assert all(modalities.collapse(modalities.expand(subset)) == subset for subset in all_subsets(3))
    assert modalities.describe((True, False, True)) == "Anatomy+T2w"


def test_a_modality_is_named_by_itself_or_one_of_its_channels():
    for name in ("anatomy", "CT", "T1", "0", 2):
        assert GROUPED.subset([name]) == (True, False, False)
    assert [GROUPED.channel(name) for name in ("Anatomy", "t1", "T2", "T2w", 1)] == [0, 2, 3, 3, 1]
    with pytest.raises(UserError, match=r"Did you mean 'Anatomy'.*0, 2 = Anatomy, 1 = PET, 3 = T2w"):
        GROUPED.channel("Anatomie")


def test_without_groups_each_channel_is_a_modality():
    ungrouped = Modalities.from_dataset_json({**tiny.dataset_json(), "unimrseg": {"patient": "(p)"}})
    assert ungrouped.groups is None and ungrouped.channels == ((0,), (1,), (2,), (3,))
    assert Modalities(("noNorm", "noNorm"), {"T1": [0], "T2": [1]}).groups == {"T1": [0], "T2": [1]}


@pytest.mark.parametrize(
    ("groups", "mistakes"),
    [
        ([0, 1], ["must be an object"]),
        ({"A": [0, 1], "B": "2", "C": [True]}, ['"B" is "2"', '"C" is [true]']),
        ({"A": [0, 1], "B": [1, 4]}, ["has the channels 4", "channel 1 several times: in A, B", "lacks the channels"]),
        ({"A": [0, 1], "a": [2, 3]}, ["modalities of one name: A, a"]),
        ({"A": [0, 1, 2, 3]}, ["Nothing can be missing"]),
        ({"PET": [0, 2], "B": [1], "C": [3]}, ["'PET' is the name of a channel of B"]),
        ({" ": [0, 1], "B": [2, 3]}, ["without a name"]),
    ],
)
def test_one_error_lists_every_mistake_in_the_groups(groups, mistakes):
    with pytest.raises(UserError) as raised:
        check_dataset_json({**dataset_json(groups), "numTraining": "many"}, "dataset.json", raw=True)
    for mistake in (*mistakes, "numTraining"):
        assert mistake in str(raised.value)
    with pytest.raises(UserError) as raised:
        Modalities.from_dataset_json(dataset_json(groups))
    assert all(mistake in str(raised.value) for mistake in mistakes)


def test_plans_name_the_channels_of_each_modality():
    assert planned_channels(plans()["configurations"]["3d_fullres"]) == GROUPED.channels
    assert planned_channels(tiny.plans()["configurations"]["3d_fullres"]) == ((0,), (1,), (2,), (3,))
    with pytest.raises(UserError, match=r"of the plans is damaged.*lacks the channels"):
        planned_channels(plans({"A": [0], "B": [1]})["configurations"]["3d_fullres"])


def test_plans_and_dataset_json_must_group_alike():
    assert planned_modalities(managers()[1], dataset_json()).channels == GROUPED.channels
    for other in (dataset_json({"A": [0, 1], "B": [2, 3]}), tiny.dataset_json()):
        with pytest.raises(UserError, match=r"do not group the channels alike.*the plans have Anatomy \[0, 2\]"):
            planned_modalities(managers()[1], other)


def test_a_checkpoint_of_other_groups_does_not_fit():
    ours, trained = managers()[1].configuration, {"configuration": "3d_fullres", "plans": tiny.plans()}
    trainer = {"trainer_name": "UniMRSegStage2Trainer", "init_args": trained}
    assert [line.split(":")[0] for line in plans_differences(trainer, ours)] == [MODALITIES_KEY]
    assert plans_differences({**trainer, "trainer_name": "nnUNetTrainer"}, ours) == []


def check(files: list, chosen: tuple[bool, ...] | None = None):
    found, problems = find_cases(files, GROUPED, tiny.ENDING, chosen)
    return check_cases(
        found, SimpleITKIO(), GROUPED, tiny.ENDING, plans=managers(), chosen=chosen, problems=problems,
        show_progress=False,
    )  # fmt: skip


def test_the_files_of_a_modality_are_there_or_absent_together(tmp_path):
    complete = tiny.write_case(tmp_path, "p", tiny.image())
    assert check([complete, complete[1:2], [complete[0], complete[2]]]) == [
        (True, True, True), (False, True, False), (True, False, False),
    ]  # fmt: skip
    with pytest.raises(UserError) as raised:
        check([complete[1:]])
    assert "Anatomy needs the channels 0000 (CT), 0002 (T1); the case has only 0002 (T1)." in str(raised.value)
    blank = tiny.image()
    blank[2] = 5
    with pytest.raises(UserError, match=r"only 0000 \(CT\), and .*b_0002.nii.gz holds one single intensity"):
        check([tiny.write_case(tmp_path, "b", blank)])
    blank[0] = 0
    assert check([tiny.write_case(tmp_path, "c", blank)]) == [(False, True, True)]


def test_only_some_modalities_are_used(tmp_path):
    tiny.write_case(tmp_path, "p", tiny.image())
    chosen = GROUPED.subset(["Anatomy"])
    assert check(tmp_path, chosen) == [(True, False, False)]
    with pytest.raises(UserError, match=r"none of the modalities asked for \(Anatomy\); it has PET"):
        check([[str(tmp_path / "p_0001.nii.gz")]], chosen)


def test_files_by_name_are_those_of_channels(tmp_path):
    paths = tiny.write_case(tmp_path, "p", tiny.image())
    assert check([{"CT": paths[0], "2": paths[2]}]) == [(True, False, False)]
    assert check([{"CT": paths[0], "T1": paths[2], "t2W": paths[3]}]) == [(True, False, True)]
    with pytest.raises(UserError, match=r"Anatomy needs the channels .*; the case has only 0000"):
        check([{"Anatomy": paths[0]}])
    layout = read_layout(
        "{case}_{modality}.nii.gz", dict(zip(("0000", "0001", "0002", "0003"), "0123", strict=True)), GROUPED, ".nii.gz"
    )
    assert list(find_files(tmp_path, layout).cases["p"]) == list(NAMES)


def write_colour(path: Path, *channels: np.ndarray) -> str:
    io.imsave(path, np.stack(channels, -1).astype(np.uint8).squeeze(), check_contrast=False)
    return str(path)


def test_a_colour_image_may_be_one_modality(tmp_path):
    modalities = Modalities(("R", "G", "B", "NIR"), {"photo": [0, 1, 2], "infrared": [3]})
    red, green, blue, infrared = np.random.default_rng(0).integers(0, 255, (4, 20, 24))
    photo = write_colour(tmp_path / "p_0000.png", red, green, np.zeros_like(blue))
    alone = write_colour(tmp_path / "p_0003.png", infrared)

    def available(*files: str):
        return check_cases([list(files)], NaturalImage2DIO(), modalities, ".png", show_progress=False)[0]

    assert (available(photo, alone), available(photo)) == ((True, True), (True, False))
    assert available(alone) == (False, True)
    named, problems = find_cases([{"photo": photo}], modalities, ".png", None)
    assert not problems and check_cases(named, NaturalImage2DIO(), modalities, ".png", show_progress=False) == [
        (True, False)
    ]
    wrong = write_colour(tmp_path / "p_0001.png", red, green, blue)
    with pytest.raises(UserError, match="holds 3 channels"):
        available(wrong)
    with pytest.raises(UserError, match=r"is channel 0001 \(G\) a second time"):
        available(photo, write_colour(tmp_path / "p_0001.png", green))
    ungrouped = Modalities(modalities.channel_names)
    with pytest.raises(UserError, match=r'"modalities": \{"NAME": \[0, 1, 2\], ...\}'):
        check_cases([[photo]], NaturalImage2DIO(), ungrouped, ".png", show_progress=False)


@pytest.mark.parametrize("subset", all_subsets(3))
def test_a_missing_modality_is_nan_in_all_channels(tmp_path, subset):
    plans_manager, configuration = managers()
    arguments = plans_manager, configuration, dataset_json()
    channels = [number for number, there in enumerate(GROUPED.expand(subset)) if there]
    files = (
        tiny.write_case(tmp_path, "p", tiny.image(), channels)
        if all(subset)
        else [tiny.write_case(tmp_path, "p", tiny.image())[channel] for channel in channels]
    )
    data, _, properties = UniMRSegPreprocessor(verbose=False).run_case(files, None, *arguments)
    assert properties["available_modalities"] == list(subset)
    assert tuple(bool(np.isfinite(channel).all()) for channel in data) == GROUPED.expand(subset)
    assert tuple(bool(np.isnan(channel).all()) for channel in data) == tuple(not c for c in GROUPED.expand(subset))
    image, spacing = tiny.image(), {"spacing": list(tiny.SPACING)}
    ((_, shared, of_subset),) = preprocess_subsets(image, spacing, {"s": subset}, *arguments)
    image[~np.array(GROUPED.expand(subset))] = 0
    alone, *_ = UniMRSegPreprocessor(verbose=False).run_case_npy(image, None, spacing, *arguments)
    assert shared.numpy().tobytes() == alone.tobytes()
    assert of_subset["available_modalities"] == list(subset)


def test_a_constant_channel_of_an_available_modality_is_no_sign_of_absence():
    plans_manager, configuration = managers()
    image = tiny.image()
    image[2] = 7
    data, _, properties = UniMRSegPreprocessor(verbose=False).run_case_npy(
        image, None, {"spacing": list(tiny.SPACING)}, plans_manager, configuration, dataset_json()
    )
    assert properties["available_modalities"] == [True] * 3
    assert np.isfinite(data).all()


def test_arrays_hold_the_channels_of_the_available_modalities():
    image = np.arange(4, dtype=np.float32).reshape(4, 1, 1, 1) + 1
    assert scatter(image[[0, 2]], GROUPED, ["Anatomy"]).ravel().tolist() == [1, 0, 3, 0]
    assert scatter(image[[3, 0, 2]], GROUPED, ["T2w", "Anatomy"]).ravel().tolist() == [1, 0, 3, 4]
    assert scatter(image, GROUPED, ["PET", "T2w"]).ravel().tolist() == [0, 2, 0, 4]
    with pytest.raises(UserError, match="named twice"):
        scatter(image, GROUPED, ["CT", "T1"])
    with pytest.raises(UserError, match=r"\(2, X, Y, Z\), those named"):
        scatter(image[:1], GROUPED, ["Anatomy"])


def test_a_dataset_without_groups_is_written_without_them():
    assert json.dumps(Modalities(NAMES).groups) == "null"
