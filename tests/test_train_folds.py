"""`unimrseg train`: datasets too small for nnU-Net's five folds."""

from __future__ import annotations

import pytest

from nnunetv2_unimrseg.cli.train import check_folds
from nnunetv2_unimrseg.data.case_table import TrainingCase, write_case_table
from nnunetv2_unimrseg.errors import UserError


def test_too_few_cases_for_five_folds_are_refused_with_the_ways_out(tmp_path):
    (tmp_path / "data").mkdir()
    for case in range(4):
        (tmp_path / "data" / f"case_{case}.pkl").touch()
    with pytest.raises(UserError, match=r"4 labelled cases, too few .*fold 'all'.*splits_final.json"):
        check_folds(tmp_path, "data", "0")
    check_folds(tmp_path, "data", "all")
    (tmp_path / "data" / "case_4.pkl").touch()
    check_folds(tmp_path, "data", "0")
    write_case_table(tmp_path, {"case_4": TrainingCase(("T1", "T2"), labelled=False)})
    with pytest.raises(UserError, match="4 labelled cases"):
        check_folds(tmp_path, "data", "0")
    (tmp_path / "splits_final.json").write_text("[]")
    check_folds(tmp_path, "data", "0")
