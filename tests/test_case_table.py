"""The table of what each training case has."""

from __future__ import annotations

import pytest

from nnunetv2_unimrseg.data.case_table import (
    CASE_TABLE_NAME,
    TrainingCase,
    describe_case_table,
    read_case_table,
    write_case_table,
)
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities

CASES = {"a": TrainingCase(("T1", "T2"), True), "b": TrainingCase(("T2",), False), "c": TrainingCase(("T2",), True)}


def test_what_is_written_is_read(tmp_path):
    assert read_case_table(tmp_path) == {}
    write_case_table(tmp_path, CASES)
    assert read_case_table(tmp_path) == CASES


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"format": 2, "cases": {}}',
        '{"format": 1, "cases": []}',
        '{"format": 1, "cases": {"a": {"available": []}}}',
        '{"format": 1, "cases": {"a": {"available": [], "labelled": true}}}',
    ],
)
def test_a_damaged_table_says_how_to_make_it_anew(tmp_path, content):
    (tmp_path / CASE_TABLE_NAME).write_text(content)
    with pytest.raises(UserError, match="Run `unimrseg plan` with --clean"):
        read_case_table(tmp_path)


def test_subsets_are_counted_the_widest_first():
    lines = describe_case_table(list(CASES.values()), Modalities(("T1", "T2"))).splitlines()
    assert lines == [
        "3 training cases: 2 labelled, 2 with missing modalities",
        "  modalities  cases  labelled",
        "  T1+T2           1         1",
        "  T2              2         1",
    ]


def test_no_more_than_twenty_subsets_are_shown():
    names = [str(number) for number in range(23)]
    cases = [TrainingCase((name,), True) for name in names]
    lines = describe_case_table(cases, Modalities(names)).splitlines()
    assert len(lines) == 2 + 20 + 1 and lines[-1] == "  and 3 more subsets"
