"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(RuntimeError):
    """Something the user can mend: the message says what happened, what was found and what to do.

    The `unimrseg` commands print the message without a traceback; under nnU-Net's own commands it is the
    text of the exception.
    """


def in_one_line(error: BaseException) -> str:
    """Return an error's message in one line, list dashes left out; its type where it has none."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    return " ".join(filter(None, lines)) or type(error).__name__


def nearest(word: object, candidates: Iterable[object]) -> str:
    """Return " Did you mean 'X'?" for the candidate most like `word`, or "" when none is close."""
    by_folded = {str(candidate).casefold(): str(candidate) for candidate in candidates}
    found = difflib.get_close_matches(str(word).casefold(), list(by_folded), n=1, cutoff=0.5)
    return f" Did you mean '{by_folded[found[0]]}'?" if found else ""
