"""A field of the configuration: its default, meaning and range, and what is wrong with a value for it."""

from __future__ import annotations

import dataclasses
from typing import Any

from nnunetv2_unimrseg.errors import nearest


def option(
    default: object,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[object, ...] = (),
) -> Any:
    """Declare a field: its default, its meaning (unit, why this default) and the range of its value.

    `choices` are values allowed besides the range, or the only ones where there is no range.
    """
    metadata = {"doc": doc, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def value_problem(field: dataclasses.Field[Any], value: object) -> str | None:
    """Return what is wrong with `value` for a field made by `option`, or None."""
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    if choices and any(type(value) is type(choice) and value == choice for choice in choices):
        return None
    if choices and low is None:
        return f"must be one of {', '.join(map(repr, choices))}.{nearest(value, choices)}"
    expected = type(field.default)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    fits = is_integer or (expected is float and isinstance(value, float)) if expected in (int, float) else False
    if not (fits or (expected is str and isinstance(value, str))):
        kind = {int: "a whole number", float: "a number", str: "text"}[expected]
        others = f" or one of {', '.join(map(repr, choices))}" if choices else ""
        return f"must be {kind}{others}, found {type(value).__name__}"
    if (low is not None and not value >= low) or (high is not None and not value <= high):
        return f"must be {allowed_range(field)}"
    return None


def allowed_range(field: dataclasses.Field[Any]) -> str:
    """Return the allowed values of a field in words, as in "from 0.0 to 1.0"."""
    low, high, choices = (field.metadata[key] for key in ("low", "high", "choices"))
    words = []
    if low is not None:
        words.append(f"at least {low}" if high is None else f"from {low} to {high}")
    words += [repr(choice) for choice in choices]
    return " or ".join(words) or "any text"
