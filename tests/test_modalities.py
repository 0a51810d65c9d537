"""Names, channels and subsets."""

from __future__ import annotations

import pytest

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities, all_subsets, incomplete_subsets, leave_one_out

BRAIN = Modalities(("FLAIR", "T1", "T1ce", "T2"))


def test_names_and_numbers():
    assert [BRAIN.channel(entry) for entry in ("FLAIR", "t1CE", "3", "0002", 1)] == [0, 2, 3, 2, 1]
    assert BRAIN.subset(("T2", "FLAIR")) == (True, False, False, True)
    assert BRAIN.describe((True, False, False, True)) == "FLAIR+T2"


@pytest.mark.parametrize(
    ("entry", "hint"), [("FLAR", "Did you mean 'FLAIR'"), ("4", "last channel is 3"), ("T1c", "T1ce")]
)
def test_unknown_modalities_name_the_nearest(entry, hint):
    with pytest.raises(UserError, match=hint):
        BRAIN.channel(entry)


def test_channel_order_of_dataset_json_is_numeric():
    channels = {str(number): f"M{number}" for number in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert Modalities.from_dataset_json({"channel_names": channels}).names[10] == "M10"
    assert Modalities.from_dataset_json({"modality": {"0": "A", "1": "B"}}).names == ("A", "B")


def test_one_modality_cannot_be_missing():
    with pytest.raises(UserError, match="Nothing can be missing"):
        Modalities(("CT",))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_subsets(count):
    subsets = all_subsets(count)
    assert len(subsets) == len(set(subsets)) == 2**count - 1
    assert [sum(subset) for subset in subsets] == sorted(sum(subset) for subset in subsets)
    assert all(subsets[-1])
    assert incomplete_subsets(count) == subsets[:-1]
    assert len(leave_one_out(count)) == count
    assert all(sum(subset) == count - 1 for subset in leave_one_out(count))


def test_many_subsets_are_never_listed():
    with pytest.raises(UserError, match="more than"):
        all_subsets(30)


def test_repeated_names_get_their_channel_number():
    """nnU-Net's channel names choose normalisers, so "noNorm" may be there several times."""
    modalities = Modalities(("noNorm", "CT", "NoNorm"))
    assert modalities.names == ("noNorm_0", "CT", "NoNorm_2")
    assert [modalities.channel(entry) for entry in ("nonorm_2", "CT", "0")] == [2, 1, 0]
    with pytest.raises(UserError, match="Did you mean 'NoNorm_2'"):
        modalities.channel("noNorm")


def test_a_subset_names_at_least_one_modality_and_none_twice_counts():
    assert BRAIN.subset(("T1", "1", 1)) == (False, True, False, False)
    with pytest.raises(UserError, match="No modality given"):
        BRAIN.subset(())


def test_dataset_json_without_channels():
    with pytest.raises(UserError, match="channel_names"):
        Modalities.from_dataset_json({"labels": {}})
