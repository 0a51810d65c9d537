import warnings

import numpy as np
import pytest
import tiny
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from preprocessing_case import Case, same_bits

from nnunetv2_unimrseg.data.preprocessing import (
    TrainingCasePreprocessor,
)


@pytest.fixture
def case():
    return Case()


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("ignore", [False, True], ids=["", "ignore"])
def test_training_cases_are_nnunets_files(case, tmp_path, regions, ignore):
    """The same content for a complete labelled case; for an unlabelled one the keys of the locations are the same."""
    if regions:
        case.dataset_json |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    case.dataset_json["labels"] |= {"ignore": 3} if ignore else {}
    files = tiny.write_case(tmp_path, "p", tiny.image())
    label = tiny.write(tmp_path / "p.nii.gz", np.random.default_rng(0).integers(0, 3, tiny.SHAPE).astype(np.uint8))
    for name, preprocessor, images, seg_file in (
        ("stock", DefaultPreprocessor, files, label),
        ("ours", TrainingCasePreprocessor, files, label),
        ("partial", TrainingCasePreprocessor, files[1:], None),
    ):
        preprocessor(verbose=False).run_case_save(str(tmp_path / name), images, seg_file, *case.managers())
    (stock, stock_seg, stock_properties), ours, partial = (
        read_preprocessed(tmp_path, name) for name in ("stock", "ours", "partial")
    )
    assert same_bits(ours[0], stock) and same_bits(ours[1], stock_seg)
    np.testing.assert_equal(ours[2], stock_properties)
    assert np.isnan(partial[0][0]).all() and np.isfinite(partial[0][1:]).all()
    assert partial[1].dtype == stock_seg.dtype and not partial[1].any()
    assert set(partial[2]) == set(stock_properties)
    assert set(partial[2]["class_locations"]) == set(stock_properties["class_locations"])
    assert not any(partial[2]["class_locations"].values())


def read_preprocessed(folder, name):
    image, label, _, properties = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
    return image[:], label[:], properties


def test_nnunets_loader_takes_patches_of_unlabelled_cases_anywhere(case, tmp_path):
    case.dataset_json["labels"] |= {"ignore": 3}
    files = tiny.write_case(tmp_path, "p", tiny.image())
    TrainingCasePreprocessor(verbose=False).run_case_save(str(tmp_path / "p"), files, None, *case.managers())
    labels = case.plans_manager.get_label_manager(case.dataset_json)
    loader = nnUNetDataLoader(nnUNetDatasetBlosc2(str(tmp_path), ["p"]), 2, (8, 8, 8), (8, 8, 8), labels, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nnU-Net says that there are no annotated voxels
        patches = [loader.generate_train_batch()["data"] for _ in range(3)]
    assert all(patch.shape == (2, 4, 8, 8, 8) and patch.isfinite().all() for patch in patches)
