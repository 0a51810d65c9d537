"""Functions that take `InferenceOptions`, called with its fields as keywords of their own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from nnunetv2_unimrseg.inference.options import InferenceOptions

FIELDS = {field.name for field in dataclasses.fields(InferenceOptions)}


def with_options(function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*arguments, **keywords):
        options = {name: keywords.pop(name) for name in FIELDS & keywords.keys()}
        return function(*arguments, **keywords, options=InferenceOptions(**options))

    return call
