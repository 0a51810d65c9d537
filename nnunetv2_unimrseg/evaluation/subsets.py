"""Which subsets of the modalities to evaluate, as a user asks for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities, Subset, all_subsets, leave_one_out

ALL, SINGLE, LEAVE_ONE_OUT, COMPLETE = "all", "single", "leave-one-out", "complete"
GROUPS = (ALL, SINGLE, LEAVE_ONE_OUT, COMPLETE)


def parse_subsets(texts: Sequence[str], modalities: Modalities) -> list[Subset]:
    """Return the subsets that `texts` name, each once, those of fewest modalities first.

    Args:
        texts: any of "all", "single", "leave-one-out", "complete", and subsets by name such as "T1+FLAIR" (names or
            channel numbers, in any order; case does not matter).
        modalities: the modalities of the dataset.

    Raises:
        UserError: for an unknown modality, for no text at all, and for "all" of more than ten modalities.
    """
    if not texts:
        example = "+".join(modalities.names[:2])
        raise UserError(f'Which subsets? Give any of {", ".join(GROUPS)}, or subsets such as "{example}".')
    found = {subset for text in texts for subset in _parse_one(text.strip(), modalities)}
    return sorted(found, key=lambda subset: (sum(subset), [not available for available in subset]))


def _parse_one(text: str, modalities: Modalities) -> list[Subset]:
    count = len(modalities)
    group = text.casefold()
    if group in {name.casefold() for name in modalities}:
        return [modalities.subset([text])]
    if group == ALL:
        return all_subsets(count)
    if group == SINGLE:
        return [tuple(channel == one for channel in range(count)) for one in range(count)]
    if group == LEAVE_ONE_OUT:
        return leave_one_out(count)
    if group == COMPLETE:
        return [(True,) * count]
    return [modalities.subset(_split_names(text, modalities))]


def _split_names(text: str, modalities: Modalities) -> list[str]:
    """Split at "+", but not inside a modality's name ("T1+C")."""
    pieces = text.split("+")
    readings = list(_readings(pieces, {name.casefold() for name in modalities}))
    return readings[0] if readings else [piece.strip() for piece in pieces]


def _readings(pieces: Sequence[str], known: set[str]) -> Iterator[list[str]]:
    if not pieces:
        yield []
    for length in range(len(pieces), 0, -1):
        name = "+".join(pieces[:length]).strip()
        if name.casefold() in known or (length == 1 and name.isdigit()):
            for rest in _readings(pieces[length:], known):
                yield [name, *rest]
