"""What a modality is: names and channel numbers, subsets, availability.

A *modality* is what a scan contributes and is missing or available as a whole: one image channel each. A *subset* is
a non-empty set of modalities, held as a tuple of booleans (one each modality, in channel order). With C modalities
there are 2^C - 1 subsets, of which 2^C - 2 are *incomplete*.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from nnunetv2_unimrseg.errors import UserError, nearest

Subset = tuple[bool, ...]

MOST_LISTED_SUBSETS = 1023
"""Where a dataset has more subsets than this (more than ten modalities), nothing lists them; they are drawn."""


class Modalities:
    """The modalities of a dataset, in channel order.

    Args:
        names: one name each image channel, in channel order, as in dataset.json's `channel_names`. Names that are
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
            raise UserError(
                f"Nothing can be missing: this dataset has {len(self.names)} modality ({', '.join(self.names)}). "
                "UniMRSeg needs at least two entries in dataset.json's 'channel_names'; use nnUNetTrainer instead."
            )

    @classmethod
    def from_dataset_json(cls, dataset_json: dict) -> Modalities:
        """Read the names from dataset.json (`channel_names`, or `modality` in old ones)."""
        channels = dataset_json.get("channel_names", dataset_json.get("modality"))
        if channels is None:
            raise UserError(
                "dataset.json names no channels: it has neither 'channel_names' nor 'modality'. "
                'Add "channel_names": {"0": "FLAIR", "1": "T1", ...}.'
            )
        return cls([channels[key] for key in sorted(channels, key=int)])

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

    def describe(self, subset: Sequence[bool]) -> str:
        """Return the names in a subset joined by "+", as in "T1+FLAIR"."""
        return "+".join(name for name, available in zip(self.names, subset, strict=True) if available)


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
