"""What is wrong with the labels of a dataset.json, as strictly as nnU-Net's training needs them.

Without regions, nnU-Net gives each label one output and takes a label's value for the number of its output, so values
with a gap end the training, and two names of one value share one output. Regions are made from the voxels' values, so
these may have gaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunetv2_unimrseg.errors import counted
from nnunetv2_unimrseg.modalities import as_json, whole_number

BACKGROUND = "background"
IGNORE = "ignore"

_BACKGROUND_NAMES = ("background", "back", "bg", "none", "nothing", "empty", "air", "clear", "unlabeled", "unlabelled")


@dataclass
class CheckedLabels:
    """What `check_labels` found.

    Attributes:
        found: one sentence a mistake.
        labels: the labels corrected; None where it is not clear what they should be.
        renumbered: whether the corrected labels have other values than the given ones.
        regions: the values of each region that is trained, by name; empty where there are no regions.
        background_moved: whether the background was absent or had another value than 0.
    """

    found: list[str] = field(default_factory=list)
    labels: dict[str, Any] | None = None
    renumbered: bool = False
    regions: dict[str, list[int]] = field(default_factory=dict)
    background_moved: bool = False

    @property
    def example(self) -> dict[str, Any]:
        """Labels of the same kind, to show where it is not clear what the right ones are."""
        return {BACKGROUND: 0, "whole": [1, 2], "core": 2} if self.regions else {BACKGROUND: 0, "tumour": 1}


def check_labels(given: object) -> CheckedLabels:
    """Find what is wrong with `labels` of a dataset.json; raises nothing."""
    labels, found = _read_names_and_values(given)
    checked = CheckedLabels(found)
    if not labels:
        return checked
    labels = _with_background(labels, checked)
    has_regions = any(
        isinstance(value, list | tuple) and len(value) > 1 for name, value in labels.items() if name != IGNORE
    )
    values = {}
    for name, value in labels.items():
        if name != IGNORE:
            values[name], found = _read_values(name, value)
            checked.found += found
    if values[BACKGROUND] != [0]:
        values[BACKGROUND] = [0]
        checked.renumbered = checked.background_moved = whole_number(labels[BACKGROUND]) is not None
    negative = [name for name, numbers in values.items() if any(number < 0 for number in numbers)]
    checked.found += [
        f'The label "{name}" has the value {as_json(labels[name])}, but values must not be negative.'
        for name in negative
    ]
    if has_regions:
        _keep_regions(labels, values, checked, known=not negative and all(values.values()))
    else:
        _number(labels, values, checked)
    _check_ignore(labels, values, checked)
    return checked


def _read_names_and_values(given: object) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the labels by name, turned round where they are reversed, and the mistakes; None for unreadable labels."""
    if isinstance(given, list) and all(isinstance(name, str) for name in given) and len(set(given)) == len(given):
        names = sorted((name for name in given if name.casefold() != BACKGROUND), key=lambda name: name == IGNORE)
        labels = {name: value for value, name in enumerate([BACKGROUND, *names])}
        return labels, ['"labels" is a list, but it must be an object from names to values.']
    if not isinstance(given, Mapping) or not given:
        kind = "a list" if isinstance(given, list) else as_json(given)
        return None, [f'"labels" is {kind}, but it must be an object from names to values.']
    numbers = [whole_number(name) for name in given]
    texts = [isinstance(value, str) and whole_number(value) is None for value in given.values()]
    if None not in numbers and all(texts):
        turned: dict[str, Any] = {}
        for number, name in zip(numbers, given.values(), strict=True):
            turned[f"{name}_{number}" if name in turned else name] = number
        return turned, ['"labels" is reversed, as in nnU-Net\'s old format: the names must stand before the values.']
    return {str(name): value for name, value in given.items()}, []


def _with_background(labels: dict[str, Any], checked: CheckedLabels) -> dict[str, Any]:
    if BACKGROUND not in labels:
        same = [name for name in labels if name.strip().casefold() == BACKGROUND]
        same += [name for name in labels if name.casefold() in _BACKGROUND_NAMES and whole_number(labels[name]) == 0]
        if not same:
            checked.found.append('"labels" has no "background", which must be there with the value 0.')
            checked.background_moved = True
            return {BACKGROUND: 0, **labels}
        checked.found.append(f'"labels" calls the background "{same[0]}", but its name must be "background".')
        labels = {BACKGROUND if name == same[0] else name: value for name, value in labels.items()}
    return labels


def _read_values(name: str, value: object) -> tuple[list[int], list[str]]:
    """Return the values of a label or region, none where one is no whole number, and the mistakes."""
    several = isinstance(value, list | tuple)
    entries = list(value) if isinstance(value, list | tuple) else [value]
    numbers = [whole_number(entry) for entry in entries]
    if name == BACKGROUND and (several or numbers[0] not in (0, None)):
        return [], [f'The label "background" has the value {as_json(value)}, but it must be 0.']
    found = [] if entries else [f'The label "{name}" has no value: its list is empty.']
    wrong = [as_json(entry) for entry in entries if isinstance(entry, str | float) or whole_number(entry) is None]
    if wrong:
        marks = " without quotation marks" if any(isinstance(entry, str) for entry in entries) else ""
        must = "values must be whole numbers" if several else "it must be a whole number"
        found.append(f'The label "{name}" has the value {", ".join(wrong)}, but {must}{marks}.')
    return [] if None in numbers else [number for number in numbers if number is not None], found


def _keep_regions(
    labels: Mapping[str, Any], values: Mapping[str, list[int]], checked: CheckedLabels, *, known: bool
) -> None:
    checked.regions = {name: numbers for name, numbers in values.items() if name != BACKGROUND and set(numbers) != {0}}
    if known:
        checked.labels = {
            name: values[name] if isinstance(labels[name], list | tuple) and name != BACKGROUND else values[name][0]
            for name in labels
            if name != IGNORE
        }


def _number(labels: Mapping[str, Any], values: Mapping[str, list[int]], checked: CheckedLabels) -> None:
    """Check that the values of labels are 0, 1, 2, ..., each once, and number them so where they are not."""
    numbers = [number for of_label in values.values() for number in of_label]
    unclear = checked.background_moved or len(numbers) < len(values) or min(numbers, default=0) < 0
    highest = max(numbers, default=0)
    absent = highest + 1 - len(set(numbers))
    ignored = whole_number(labels.get(IGNORE))
    if ignored is not None and ignored not in numbers and 0 < ignored < highest:
        absent -= 1
    twice = {number: [name for name, own in values.items() if own == [number]] for number in dict.fromkeys(numbers)}
    extra = len(numbers) - len(set(numbers))
    for number, names in twice.items():
        if len(names) < 2 or (number == 0 and checked.background_moved):
            continue
        quoted = " and ".join(f'"{name}"' for name in names)
        checked.found += [f"The labels {quoted} have the value {number} together, but each label needs its own."]
    if not unclear and absent > extra:
        given = ", ".join(map(str, sorted(set(numbers))))
        checked.found += [f"The labels have the values {given}, but nnU-Net needs 0, 1, 2, ... without a gap."]
    if unclear or extra or highest + 1 > len(numbers):
        order = sorted(values, key=lambda name: (name != BACKGROUND, *(values[name] or [highest + 1])))
        checked.labels = {name: order.index(name) for name in values}
        checked.renumbered |= any(own != [order.index(name)] for name, own in values.items() if own)
    else:
        checked.labels = {name: own[0] for name, own in values.items()}


def _check_ignore(labels: Mapping[str, Any], values: Mapping[str, list[int]], checked: CheckedLabels) -> None:
    """Check that the ignore label follows the highest value; `null` is no ignore label, as nnU-Net takes it."""
    given = labels.get(IGNORE)
    if given is not None:
        before = max((number for numbers in values.values() for number in numbers), default=0) + 1
        after = before if checked.labels is None else _highest(checked.labels) + 1
        if isinstance(given, list | tuple):
            checked.found.append(f'The label "ignore" has the value {as_json(given)}, but it must be one whole number.')
        elif whole_number(given) is None or isinstance(given, str | float):
            checked.found.append(f'The label "ignore" has the value {as_json(given)}, but it must be a whole number.')
        elif given not in (before, after):
            checked.found.append(
                f'The label "ignore" has the value {given}, but it must be the highest: one more than all others.'
            )
        checked.renumbered |= whole_number(given) not in (None, after)
        labels = {**labels, IGNORE: after}
    if checked.labels is not None:
        checked.labels = {name: checked.labels.get(name, labels[name]) for name in labels}


def _highest(labels: Mapping[str, Any]) -> int:
    highest: int = max(max(value) if isinstance(value, list) else value for value in labels.values())
    return highest


def check_regions_class_order(given: object, regions: Mapping[str, list[int]]) -> tuple[list[str], list[int] | None]:
    """Find what is wrong with `regions_class_order`; raises nothing.

    Args:
        given: the value; None where there is none.
        regions: the values of each region, in the order of the labels; empty where there are no regions.

    Returns:
        One sentence a mistake, and the corrected value; None where it is not clear what it should be.
    """
    if not regions:
        return [], None
    clear = all(numbers and min(numbers) >= 0 for numbers in regions.values())
    known = sorted({number for numbers in regions.values() for number in numbers if number > 0})
    names = ", ".join(regions)
    order = _drawing_order(regions) if clear else None
    if not isinstance(given, list | tuple):
        what = "is absent" if given is None else f"is {as_json(given)}"
        found = [
            f'"regions_class_order" {what}, but "labels" has regions, which need a list of one value each: {names}.'
        ]
        return _with_advice(found, order, clear), order
    numbers = [whole_number(entry) for entry in given]
    found = []
    if any(isinstance(entry, str | float) or whole_number(entry) is None for entry in given):
        found.append(f'"regions_class_order" is {as_json(given)}, but its values must be whole numbers.')
    strange = [str(number) for number in numbers if number is not None and number not in known]
    if len(numbers) != len(regions):
        found.append(
            f'"regions_class_order" has {counted(len(numbers), "value")}, but there are '
            f"{counted(len(regions), 'region')} besides the background: {names}."
        )
    elif strange and clear:
        found.append(
            f'"regions_class_order" has {", ".join(strange)}, but its values must be those of labels: '
            f"{', '.join(map(str, known))}."
        )
    if len(numbers) == len(regions) and not strange and None not in numbers:
        order = [number for number in numbers if number is not None]
    return _with_advice(found, order, clear), order


def _with_advice(found: list[str], order: list[int] | None, clear: bool) -> list[str]:
    if found and order is None and clear:
        found[-1] += (
            ' List the regions in "labels" from the largest to the smallest, and write for each a value that is in '
            "no later one."
        )
    return found


def _drawing_order(regions: Mapping[str, list[int]]) -> list[int] | None:
    """Return, for each region, a value that no later region has, for later ones are drawn over earlier ones."""
    values = [set(numbers) for numbers in regions.values()]
    own = [region - {0}.union(*values[place + 1 :]) for place, region in enumerate(values)]
    return [min(numbers) for numbers in own] if all(own) else None
