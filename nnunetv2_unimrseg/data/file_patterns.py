"""Patterns that say where the files of cases lie in a folder tree, as in `{case}/{case}-{modality}.nii.gz`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from nnunetv2_unimrseg.errors import UserError, nearest

CASE, MODALITY = "case", "modality"
_PLACEHOLDERS = (CASE, MODALITY)


class FilePattern:
    """A pattern of the paths of files below a folder, with slashes between the folders.

    `{case}` and `{modality}` stand for one or more characters other than a slash, and for the same characters wherever
    they are repeated. `*` stands for any number of characters other than a slash. Everything else stands for itself.

    Args:
        text: the pattern.
        needed: the placeholders that it must have.
        spellings: what `{modality}` is known to be called in files; upper and lower case are the same. Where a path can
            be split in several ways, as `A_T1_ce` into case and modality, these are preferred.

    Raises:
        UserError: for a placeholder that is unknown, lacking or not closed, and for an absolute path.
    """

    def __init__(self, text: str, needed: Sequence[str] = (), spellings: Iterable[str] = ()) -> None:
        self.text = text.removeprefix("./")
        _check(self.text, needed)
        longest_first = sorted(spellings, key=len, reverse=True)
        known = "|".join(map(re.escape, longest_first))
        self._expressions = [re.compile(self._translate(rf"(?i:{known})"))] if known else []
        self._expressions.append(re.compile(self._translate(r"[^/]+")))

    def match(self, path: str) -> dict[str, str] | None:
        """Return what the placeholders are in a path: `{"case": "A", "modality": "t1"}`; None where it does not fit."""
        for expression in self._expressions:
            if found := expression.fullmatch(path):
                return found.groupdict()
        return None

    def _translate(self, modality: str) -> str:
        expression = ""
        seen: set[str] = set()
        for part in re.split(r"(\{\w+\}|\*)", self.text):
            name = part.strip("{}")
            if part == "*":
                expression += "[^/]*"
            elif part != f"{{{name}}}":
                expression += re.escape(part)
            elif name in seen:
                expression += f"(?P={name})"
            else:
                seen.add(name)
                expression += f"(?P<{name}>{modality if name == MODALITY else '[^/]+'})"
        return expression


class IgnorePattern(FilePattern):
    """A pattern of files to leave out; one without a slash fits a file of that name in any folder."""

    def match(self, path: str) -> dict[str, str] | None:
        """Return what the placeholders are, as `FilePattern.match`."""
        return super().match(path if "/" in self.text else path.rpartition("/")[2])


def _check(text: str, needed: Sequence[str]) -> None:
    if text.startswith("/"):
        raise UserError(f"The pattern '{text}' starts with a slash. Patterns start below the folder that -i names.")
    for name in re.findall(r"\{(.*?)\}", text):
        if name not in _PLACEHOLDERS:
            raise UserError(
                f"The pattern '{text}' has {{{name}}}.{nearest(name, _PLACEHOLDERS)} Use {{case}} for the name of the "
                "case, {modality} for the modality, * for any other text."
            )
    if re.search(r"[{}]", re.sub(r"\{.*?\}", "", text)):
        raise UserError(f"The pattern '{text}' has a brace without its counterpart. Write {{case}} and {{modality}}.")
    lacking = [f"{{{name}}}" for name in needed if f"{{{name}}}" not in text]
    if lacking:
        raise UserError(
            f"The pattern '{text}' lacks {' and '.join(lacking)}; an example is {{case}}/{{case}}-{{modality}}.nii.gz."
        )
