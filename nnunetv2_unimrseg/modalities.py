"""What a modality is: names and channel numbers, subsets, availability.

A *modality* is one image channel, or several that dataset.json groups, missing or available as a whole. A *subset* is
a non-empty set of modalities, held as a tuple of booleans (one for each modality, in channel order). With M modalities
there are 2^M - 1 subsets, of which 2^M - 2 are *incomplete*.
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
    """The modalities of a dataset, in the order of their first channels.

    Args:
        channel_names: one name for each image channel, in channel order, as in dataset.json's `channel_names`. Names
            that are repeated (as "noNorm" may be, which for nnU-Net is a normaliser) get their channel number appended.
        groups: the channel numbers of each modality by its name, each channel in exactly one; None where each channel
            is a modality of its own, under its own name.

    Attributes:
        names: of the M modalities.
        channels: the channel numbers of each modality.
        channel_names: of the C channels.

    Raises:
        UserError: when there are fewer than two, since then nothing can be missing.
    """

    def __init__(self, channel_names: Sequence[str], groups: Mapping[str, Sequence[int]] | None = None) -> None:
        texts = [str(name) for name in channel_names]
        folded = [text.casefold() for text in texts]
        self.channel_names = tuple(
            text if folded.count(text.casefold()) == 1 else f"{text}_{number}" for number, text in enumerate(texts)
        )
        if groups is None:
            groups = {name: [number] for number, name in enumerate(self.channel_names)}
        ordered = sorted((sorted(channels), name) for name, channels in groups.items())
        self.names = tuple(name for _, name in ordered)
        self.channels = tuple(tuple(channels) for channels, _ in ordered)
        if len(self.names) < 2:
            raise UserError(_too_few(self.names, grouped=len(self.channel_names) > 1))
        owners = {channel: number for number, channels in enumerate(self.channels) for channel in channels}
        self._owners = tuple(owners[channel] for channel in range(len(self.channel_names)))

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> Modalities:
        """Read the names from dataset.json (`channel_names`, or `modality` in old ones), and the groups of channels.

        Raises:
            UserError: one error that lists all that is wrong with the channels (see `check_channels`), or with their
                groups (see `check_groups`).
        """
        if not isinstance(dataset_json, Mapping):
            raise UserError(f"dataset.json must hold a JSON object, found {as_json(dataset_json)}.")
        found, channels = check_channels(dataset_json)
        if found:
            line = f'"{channels_key(dataset_json)}": {json.dumps(channels or EXAMPLE, ensure_ascii=False)}'
            write = f" Write: {line}" if channels else f" Write, for example: {line}"
            raise UserError(" ".join(found) + (write if len(channels) != 1 else ""))
        found, groups = check_groups(dataset_json, list(channels.values()))
        if found:
            raise UserError(" ".join(found))
        return cls(list(channels.values()), groups)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def num_channels(self) -> int:
        """Number of image channels, of which a modality may have several."""
        return len(self.channel_names)

    @property
    def first_channels(self) -> dict[str, int]:
        """What a file may hold, with the number of its first channel: a modality, or one channel of it, by name."""
        by_name = {name: channels[0] for name, channels in zip(self.names, self.channels, strict=True)}
        return by_name | {name: number for number, name in enumerate(self.channel_names) if name not in by_name}

    @property
    def groups(self) -> dict[str, list[int]] | None:
        """The channel numbers of each modality by its name; None where each channel is one, under its own name."""
        if self.names == self.channel_names:
            return None
        return {name: list(channels) for name, channels in zip(self.names, self.channels, strict=True)}

    def expand(self, subset: Sequence[bool]) -> tuple[bool, ...]:
        """Return for each of the C channels whether the modality that it belongs to is in a subset."""
        return tuple(bool(subset[owner]) for owner in self._owners)

    def collapse(self, channels: Sequence[bool]) -> Subset:
        """Return for each modality whether some of its channels is among the given ones, C booleans."""
        return tuple(any(channels[channel] for channel in of_modality) for of_modality in self.channels)

    def channels_of_modality(self, name_or_number: str | int) -> tuple[int, ...]:
        """Return the channels of a modality given by its name, or by the name or number of one of its channels.

        Raises:
            UserError: when there is no such modality (see `channel`).
        """
        return self.channels[self.modality_of_channel(self.channel(name_or_number))]

    def modality_of_channel(self, channel: int) -> int:
        """Return the number, from 0 to M - 1, of the modality that a channel belongs to."""
        return self._owners[channel]

    def describe_channels(self, channels: Iterable[int]) -> str:
        """Return channels with number and name, as in "0000 (FLAIR), 0001 (T1)"."""
        return ", ".join(f"{channel:04d} ({self.channel_names[channel]})" for channel in channels)

    def channel(self, name_or_number: str | int) -> int:
        """Return a channel number: of a modality (its first channel), of a channel's name, or a number ("0", "0000").

        Upper and lower case of names are the same.

        Raises:
            UserError: when there is no such modality or channel; names the nearest one.
        """
        text = str(name_or_number)
        by_name = {name.casefold(): channel for name, channel in self.first_channels.items()}
        if text.casefold() in by_name:
            return by_name[text.casefold()]
        if text.isdigit() and int(text) < self.num_channels:
            return int(text)
        known = ", ".join(
            f"{', '.join(map(str, channels))} = {name}"
            for channels, name in zip(self.channels, self.names, strict=True)
        )
        if text.isdigit():
            hint = f" The last channel is {self.num_channels - 1} ({self.channel_names[-1]})."
        else:
            hint = nearest(text, list(self.first_channels))
        raise UserError(f"Unknown modality '{text}'.{hint} This dataset has: {known}.")

    def subset(self, names_or_numbers: Iterable[str | int]) -> Subset:
        """Return the subset that holds the given modalities; a channel's name or number stands for its modality.

        Raises:
            UserError: for an unknown modality, or for none at all.
        """
        channels = {self.channel(entry) for entry in names_or_numbers}
        if not channels:
            raise UserError(f"No modality given; at least one of {', '.join(self.names)} is needed.")
        return self.collapse([number in channels for number in range(self.num_channels)])

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


SETTINGS_KEY, GROUPS_KEY = "unimrseg", "modalities"
"""Entry of dataset.json for this package, and the entry in it that groups channels into modalities."""


def check_groups(
    dataset_json: Mapping[str, Any], channel_names: Sequence[str]
) -> tuple[list[str], dict[str, list[int]] | None]:
    """Find what is wrong with the modalities that dataset.json groups channels into; raises nothing.

    They stand in `"unimrseg": {"modalities": {"DWI": [0, 1], "T1": [2]}}`.

    Returns:
        One sentence a mistake, and the groups; None where there are none, or mistakes.
    """
    settings = dataset_json.get(SETTINGS_KEY)
    if not isinstance(settings, Mapping) or GROUPS_KEY not in settings:
        return [], None
    return group_mistakes(settings[GROUPS_KEY], channel_names)


def group_mistakes(groups: object, channel_names: Sequence[str]) -> tuple[list[str], dict[str, list[int]] | None]:
    """Find what is wrong with groups of channels, as `check_groups` does."""
    where = f'"{GROUPS_KEY}" in "{SETTINGS_KEY}"'
    if not isinstance(groups, Mapping) or not groups:
        return [f'{where} is {as_json(groups)}, but it must be an object: {{"DWI": [0, 1], "T1": [2]}}.'], None
    found: list[str] = []
    owners: dict[int, list[str]] = {}
    for name, channels in groups.items():
        numbers = channels if isinstance(channels, list | tuple) else []
        if not numbers or not all(type(number) is int for number in numbers):
            found.append(f'{where}: "{name}" is {as_json(channels)}, but it must be a list of channel numbers.')
            continue
        for number in numbers:
            owners.setdefault(number, []).append(str(name))
    last = len(channel_names) - 1
    unknown = sorted(number for number in owners if not 0 <= number <= last)
    absent = [f"{number} ({name})" for number, name in enumerate(channel_names) if number not in owners]
    if unknown:
        found.append(f"{where} has the channels {', '.join(map(str, unknown))}; the channels are 0 to {last}.")
    found += [
        f"{where} has channel {number} several times: in {', '.join(names)}. It must be in one modality, once."
        for number, names in sorted(owners.items())
        if len(names) > 1
    ]
    if absent and not any("must be a list" in sentence for sentence in found):
        found.append(f"{where} lacks the channels {', '.join(absent)}. Each must be in one modality.")
    found += _group_name_mistakes(list(map(str, groups)), owners, channel_names, where)
    return found, None if found else {str(name): sorted(channels) for name, channels in groups.items()}


def _group_name_mistakes(
    names: Sequence[str], owners: Mapping[int, Sequence[str]], channel_names: Sequence[str], where: str
) -> list[str]:
    folded = [name.casefold() for name in names]
    twice = [name for name in names if folded.count(name.casefold()) > 1]
    found = [f"{where} has modalities of one name: {', '.join(twice)}. Rename one."] if twice else []
    if "" in [name.strip() for name in names]:
        found.append(f"{where} has a modality without a name.")
    found += [
        f"{where}: '{name}' is the name of a channel of {owners[number][0]}. Give the modality another name."
        for name in names
        for number, channel_name in enumerate(channel_names)
        if channel_name.casefold() == name.casefold() and name not in owners.get(number, [name])
    ]
    if len(names) < 2:
        found.append(_too_few(names, grouped=True))
    return found


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


def _too_few(names: Sequence[str], *, grouped: bool = False) -> str:
    there = f"{counted(len(names), 'modality', 'modalities')}{f' ({names[0]})' if names else ''}"
    where = f"'{GROUPS_KEY}'" if grouped else "'channel_names'"
    return (
        f"Nothing can be missing: this dataset has {there}. "
        f"UniMRSeg needs at least two entries in dataset.json's {where}; use nnUNetTrainer instead."
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
