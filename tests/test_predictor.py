"""UniMRSegPredictor: signatures, arrays by modality name, reports."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunetv2_unimrseg.cases import write_report
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.inference.arrays import scatter
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.predictor import UniMRSegPredictor

BRAIN = Modalities(("FLAIR", "T1", "T1ce", "T2"))
IMAGE = np.arange(4 * 2 * 3 * 3, dtype=np.float32).reshape(4, 2, 3, 3) + 1


OVERRIDDEN = [
    name
    for name, member in vars(UniMRSegPredictor).items()
    if inspect.isfunction(member) and hasattr(nnUNetPredictor, name)
]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_signatures_are_nnunets_with_more_keywords_only(name):
    ours = inspect.signature(getattr(UniMRSegPredictor, name)).parameters.values()
    stock = inspect.signature(getattr(nnUNetPredictor, name)).parameters.values()
    shared = [parameter for parameter in ours if parameter.kind is not parameter.KEYWORD_ONLY]
    assert [parameter.name for parameter in shared] == [parameter.name for parameter in stock]
    for one, other in zip(shared, stock, strict=True):
        assert one.default == other.default, one.name


def test_scatter_puts_named_channels_into_their_places():
    whole = scatter(IMAGE, BRAIN, ("T2", "flair"))
    assert np.array_equal(whole[[0, 3]], IMAGE[[0, 3]])
    assert not whole[[1, 2]].any()
    assert np.array_equal(scatter(IMAGE[[3, 0]], BRAIN, ("T2", "FLAIR")), whole)
    assert scatter(IMAGE, BRAIN, None) is IMAGE


@pytest.mark.parametrize(
    ("image", "names"), [(IMAGE[:3], ("T1", "T2")), (IMAGE, ("T1", "T1")), (IMAGE, ("T9",)), (IMAGE, ())]
)
def test_scatter_refuses_what_is_not_clear(image, names):
    with pytest.raises(UserError):
        scatter(image, BRAIN, names)


def test_reports_of_earlier_cases_are_kept(tmp_path):
    write_report(tmp_path, {"b": {"available": ["T1"], "missing": ["T2"]}})
    write_report(tmp_path, {"a": {"available": ["T2"], "missing": ["T1"]}})
    assert list(json.loads((tmp_path / "modalities.json").read_text())) == ["a", "b"]


def test_absent_models_are_one_error(tmp_path):
    predictor = UniMRSegPredictor(device=torch.device("cpu"))
    with pytest.raises(UserError, match="There is no trained model"):
        predictor.initialize_from_trained_model_folder(str(tmp_path / "none"), (0,))
    with pytest.raises(UserError, match="No model is loaded"):
        predictor.modalities  # noqa: B018 (the property raises)
