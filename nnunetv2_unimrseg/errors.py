"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(RuntimeError):
    """Something the user can mend: the message says what happened, what was found and what to do.

    The `unimrseg` commands print the message without a traceback; under nnU-Net's own commands it is the
    text of the exception.
    """


def in_one_line(error: BaseException) -> str:
    """Return an error's message in one line, list dashes left out; its type where it has none."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    return " ".join(filter(None, lines)) or type(error).__name__


def reason_in_words(error: BaseException) -> str:
    """Return the operating system's reason for an error, as "No space left on device"; else its message in one line."""
    return getattr(error, "strerror", None) or in_one_line(error)


def nearest(word: object, candidates: Iterable[object]) -> str:
    """Return " Did you mean 'X'?" for the candidate most like `word`, or "" when none is close."""
    by_folded = {str(candidate).casefold(): str(candidate) for candidate in candidates}
    found = difflib.get_close_matches(str(word).casefold(), list(by_folded), n=1, cutoff=0.5)
    return f" Did you mean '{by_folded[found[0]]}'?" if found else ""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: "1 problem", "5 problems"; `plural` for nouns whose plural is not made with s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def format_size(values: Iterable[float]) -> str:
    """Return numbers as sizes and spacings are written: "64 x 64 x 32"."""
    return " x ".join(f"{float(value):g}" for value in values)


def enumerated(entries: Sequence[object], most: int) -> str:
    """Return the first `most` entries in one line, and how many more there are: "a, b and 3 more"."""
    left = len(entries) - most
    return ", ".join(map(str, entries[:most])) + (f" and {left} more" if left > 0 else "")


def listed(entries: Sequence[object], most: int | None = None) -> str:
    """Return one line an entry, each after a dash; only the first `most`, and how many more there are."""
    shown = [f"  - {entry}" for entry in entries[:most]]
    left = len(entries) - len(shown)
    return "\n".join([*shown, f"  - and {left} more"] if left else shown)
