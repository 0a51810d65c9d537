"""What a modality is: names and channel numbers, subsets, availability.

A *modality* is one image channel, missing or available as a whole. A *subset* is a non-empty set of modalities,
held as a tuple of booleans (one for each modality, in channel order). With C modalities there are 2^C - 1 subsets, of
which 2^C - 2 are *incomplete*.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

from nnunetv2_unimrseg.errors import UserError, counted, nearest

Subset = tuple[bool, ...]

MOST_LISTED_SUBSETS = 1023
"""The subsets of a dataset that has more than this (more than ten modalities) are drawn at random, never listed."""


class Modalities:
    """The modalities of a dataset, in channel order.

    Args:
        names: one name for each image channel, in channel order, as in dataset.json's `channel_names`. Names that are
            repeated (as "noNorm" may be, which for nnU-Net is a normaliser) get their channel number appended.

    Raises:
        UserError: when there are fewer than two, since then nothing can be missing.
    """

    def __init__(self, names: Sequence[str]) -> None:
        texts = [str(name) for name in names]
        folded = [text.casefold() for text in texts]
        self.names = tuple(
            text if folded.count(text.casefold()) == 1 else f"{text}_{number}" for number, text in enumerate(texts)
        )
        if len(self.names) < 2:
            raise UserError(_too_few(self.names))

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> Modalities:
        """Read the names from dataset.json (`channel_names`, or `modality` in old ones).

        Raises:
            UserError: one error that lists all that is wrong with the channels (see `check_channels`).
        """
        if not isinstance(dataset_json, Mapping):
            raise UserError(f"dataset.json must hold a JSON object, found {as_json(dataset_json)}.")
        found, channels = check_channels(dataset_json)
        if found:
            line = f'"{channels_key(dataset_json)}": {json.dumps(channels or EXAMPLE, ensure_ascii=False)}'
            write = f" Write: {line}" if channels else f" Write, for example: {line}"
            raise UserError(" ".join(found) + (write if len(channels) != 1 else ""))
        return cls(list(channels.values()))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def channel(self, name_or_number: str | int) -> int:
        """Return the channel number of a modality given by name (case does not matter) or number ("0", 0, "0000").

        Raises:
            UserError: when there is no such modality; names the nearest one.
        """
        text = str(name_or_number)
        folded = [name.casefold() for name in self.names]
        if text.casefold() in folded:
            return folded.index(text.casefold())
        if text.isdigit() and int(text) < len(self):
            return int(text)
        known = ", ".join(f"{number} = {name}" for number, name in enumerate(self.names))
        if text.isdigit():
            hint = f" The last channel is {len(self) - 1} ({self.names[-1]})."
        else:
            hint = nearest(text, self.names)
        raise UserError(f"Unknown modality '{text}'.{hint} This dataset has: {known}.")

    def subset(self, names_or_numbers: Iterable[str | int]) -> Subset:
        """Return the subset that holds the given modalities.

        Raises:
            UserError: for an unknown modality, or for none at all.
        """
        channels = {self.channel(entry) for entry in names_or_numbers}
        if not channels:
            raise UserError(f"No modality given; at least one of {', '.join(self.names)} is needed.")
        return tuple(number in channels for number in range(len(self)))

    def available(self, subset: Sequence[bool]) -> list[str]:
        """Return the names in a subset."""
        return [name for name, available in zip(self.names, subset, strict=True) if available]

    def describe(self, subset: Sequence[bool]) -> str:
        """Return the names in a subset joined by "+", as in "T1+FLAIR"."""
        return "+".join(self.available(subset))


EXAMPLE = {"0": "FLAIR", "1": "T1"}
"""An example of `channel_names` for messages."""


def channels_key(dataset_json: Mapping[str, Any]) -> str:
    """Return the key under which dataset.json names its channels: `channel_names`, or `modality` in old ones."""
    return "modality" if "modality" in dataset_json and "channel_names" not in dataset_json else "channel_names"


def check_channels(dataset_json: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Find what is wrong with the channels that dataset.json names; raises nothing.

    Returns:
        One sentence a mistake, and the corrected `channel_names` in channel order (empty where they cannot be told).
    """
    key = channels_key(dataset_json)
    if key not in dataset_json:
        return ['"channel_names" is absent.'], {}
    entries, found = _numbered_names(dataset_json[key], key)
    if entries is None:
        return found, {}
    found += _number_mistakes(entries, key)
    by_number = {known: entry for entry in entries if (known := whole_number(entry[0])) is not None}
    if len(by_number) == len(entries):
        entries = [by_number[known] for known in sorted(by_number)]
    channels = {}
    for place, (number, name) in enumerate(entries):
        if not isinstance(name, str):
            found.append(f'The name of channel {as_json(number)} in "{key}" is {as_json(name)}, but it must be text.')
            if isinstance(number, str) and whole_number(number) is None:
                name = number
            name = f"modality_{place}" if name is None or isinstance(name, list | dict) else str(name)
        channels[str(place)] = name
    if key == "channel_names" and "modality" in dataset_json:
        other = dataset_json["modality"]
        if not isinstance(other, Mapping | Sequence) or len(other) != len(channels):
            found.append(
                f'"modality": {as_json(other)}, the old name of "channel_names", is there too, and nnU-Net counts the '
                'channels by it. Remove "modality".'
            )
    if len(channels) < 2:
        found.append(_too_few(list(channels.values())))
    return found, channels


def _numbered_names(channels: object, key: str) -> tuple[list[tuple[Any, Any]] | None, list[str]]:
    """Return pairs of a number and a name, turned round where they are reversed; and what is wrong with them."""
    rule = "but it must be an object from channel numbers to names."
    if isinstance(channels, list | tuple) and all(isinstance(name, str) for name in channels):
        return [(str(number), name) for number, name in enumerate(channels)], [f'"{key}" is a list, {rule}']
    if not isinstance(channels, Mapping):
        return None, [f'"{key}" is {as_json(channels)}, {rule}']
    entries = list(channels.items())
    no_numbers = [name for name, _ in entries if whole_number(name) is None]
    if no_numbers and all(whole_number(value) is not None for _, value in entries):
        reversed_names = f'"{key}" is reversed: the channel numbers must stand before the names.'
        return [(number, name) for name, number in entries], [reversed_names]
    return entries, []


def _number_mistakes(entries: Sequence[tuple[Any, Any]], key: str) -> list[str]:
    numbers = [whole_number(number) for number, _ in entries]
    unknown = [as_json(number) for (number, _), known in zip(entries, numbers, strict=True) if known is None]
    twice = [as_json(number) for (number, _), known in zip(entries, numbers, strict=True) if numbers.count(known) > 1]
    in_order = sorted(number for number in numbers if number is not None)
    if unknown:
        return [f'"{key}" has {", ".join(unknown)} where channel numbers ("0", "1", ...) must stand.']
    if twice:
        return [f'"{key}" numbers several channels alike: {", ".join(twice)}.']
    if in_order != list(range(len(numbers))):
        return [
            f'"{key}" has the channel numbers {", ".join(map(str, in_order))}, but they must be 0, 1, 2, ... '
            "without a gap, as in the names of the image files (_0000, _0001, ...)."
        ]
    return []


def _too_few(names: Sequence[str]) -> str:
    there = f"{counted(len(names), 'modality', 'modalities')}{f' ({names[0]})' if names else ''}"
    return (
        f"Nothing can be missing: this dataset has {there}. "
        "UniMRSeg needs at least two entries in dataset.json's 'channel_names'; use nnUNetTrainer instead."
    )


def whole_number(value: object) -> int | None:
    """Return the whole number that a value of a JSON file is or stands for (2, 2.0, "2", "0002"), else None."""
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value, re.ASCII) else None
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def as_json(value: object) -> str:
    """Return a value as a JSON file has it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def all_subsets(num_modalities: int) -> list[Subset]:
    """List every subset, fewest modalities first, the complete one last.

    Raises:
        UserError: where there are more than `MOST_LISTED_SUBSETS`.
    """
    if 2**num_modalities - 1 > MOST_LISTED_SUBSETS:
        raise UserError(
            f"{num_modalities} modalities have {2**num_modalities - 1} subsets, more than the "
            f"{MOST_LISTED_SUBSETS} that are ever listed; name the subsets you want instead."
        )
    subsets = [subset for subset in itertools.product((False, True), repeat=num_modalities) if any(subset)]
    return sorted(subsets, key=lambda subset: (sum(subset), [not available for available in subset]))


def incomplete_subsets(num_modalities: int) -> list[Subset]:
    """List every subset that lacks a modality (see `all_subsets`)."""
    return all_subsets(num_modalities)[:-1]


def leave_one_out(num_modalities: int) -> list[Subset]:
    """List the subsets that lack exactly one modality; there are as many as modalities."""
    return [tuple(channel != left_out for channel in range(num_modalities)) for left_out in range(num_modalities)]
