"""The scans of cases in a folder tree, found by the pattern of their names.

A scan that goes unnoticed would pass for a missing modality. Therefore every file is either assigned to a case, named
as a problem, or listed as unused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunetv2_unimrseg.data.case_files import is_file_name
from nnunetv2_unimrseg.data.cases import check_input_folder
from nnunetv2_unimrseg.data.file_patterns import CASE, MODALITY, FilePattern, IgnorePattern
from nnunetv2_unimrseg.data.scan_folder import misnamed_scan, why_unusable
from nnunetv2_unimrseg.errors import UserError, counted, enumerated, listed, nearest, reason_in_words
from nnunetv2_unimrseg.modalities import Modalities

MOST_NAMED_PROBLEMS = 100
MOST_NAMED_FILES = 20


@dataclass(frozen=True)
class TreeLayout:
    """How the files of a folder tree are named.

    Attributes:
        modalities: the dataset's.
        file_ending: of the scans and labels that are used.
        pattern: of the scans.
        names: from a modality as files spell it, in upper or lower case, to its name in the dataset.
        ignored: of the files to leave out.
        label_pattern: of the labels; None where they are not wanted.
    """

    modalities: Modalities
    file_ending: str
    pattern: FilePattern
    names: Mapping[str, str]
    ignored: Sequence[IgnorePattern] = ()
    label_pattern: FilePattern | None = None


def read_layout(
    pattern: str,
    names: Mapping[str, str],
    modalities: Modalities,
    file_ending: str,
    ignored: Sequence[str] = (),
    label_pattern: str | None = None,
) -> TreeLayout:
    """Check how files are named; see `TreeLayout`.

    Raises:
        UserError: when a pattern is wrong or has another file ending, or `names` leads to an unknown modality.
    """
    known, problems = {}, []
    for spelling, name in names.items():
        try:
            known[spelling] = _spell(name, modalities)
        except UserError as error:
            problems.append(f"--names {spelling}={name}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    spellings = [*known, *modalities.first_channels]
    label = None if label_pattern is None else FilePattern(label_pattern, [CASE])
    if label is not None and f"{{{MODALITY}}}" in label.text:
        raise UserError(f"The pattern of the labels, '{label.text}', must not have {{modality}}: a case has one label.")
    layout = TreeLayout(
        modalities,
        file_ending,
        FilePattern(pattern, [CASE, MODALITY], spellings),
        known,
        [IgnorePattern(text) for text in ignored],
        label,
    )
    for one in filter(None, (layout.pattern, label)):
        if not one.text.endswith(file_ending):
            raise UserError(f"The pattern '{one.text}' must end with '{file_ending}', as this dataset's files do.")
    return layout


@dataclass
class FoundFiles:
    """The files that were found; paths start with the folder that was searched.

    Attributes:
        cases: by the case's name, the file of each modality that is there; in the order of the names.
        labels: by the case's name, the label.
        unused: paths below the folder, of images that fit no pattern.
    """

    cases: dict[str, dict[str, str]] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def print_unused(self) -> None:
        """List the files that are not used, if there are any."""
        if self.unused:
            print(
                f"{counted(len(self.unused), 'image fits', 'images fit')} no pattern and "
                f"{'is' if len(self.unused) == 1 else 'are'} not used (--ignore leaves files out of this list):\n"
                f"{listed(self.unused, MOST_NAMED_FILES)}"
            )


def _spell(name: str, modalities: Modalities) -> str:
    """Return a name as the dataset spells it; a number stands for the channel's."""
    channel = modalities.channel(name)
    return {known.casefold(): known for known in modalities.first_channels}.get(
        name.casefold(), modalities.channel_names[channel]
    )


class _Search:
    """One search through a tree: what was found and what is wrong."""

    def __init__(self, folder: Path, layout: TreeLayout) -> None:
        self.folder = folder
        self.layout = layout
        self.found = FoundFiles()
        self.problems: list[str] = []
        self._unknown: Counter[str] = Counter()
        self._misnamed: list[tuple[str, str, str]] = []
        self._by_folded = {name.casefold(): name for name in layout.modalities.first_channels}
        self._by_folded |= {spelling.casefold(): name for spelling, name in layout.names.items()}

    def run(self) -> None:
        """Look at every file, then at what all of them have shown."""
        for path in self._walk(self.folder, "", (os.path.realpath(self.folder),)):
            if not any(pattern.match(path.rstrip("/")) is not None for pattern in self.layout.ignored):
                self._look_at(path)
        for path, wanted, reason in self._misnamed:
            fields = self._match(wanted)
            files = self.found.cases.get(fields[CASE], {})
            used = self._modality(fields) in files if MODALITY in fields else fields[CASE] in self.found.labels
            if used or (MODALITY in fields and self._modality(fields) is None):
                self.found.unused.append(path)
            else:
                self.problems.append(f"{self.folder / path}: {reason}")
        if self._unknown:
            self.problems.append(self._describe_unknown())
        self.problems += [
            f"case '{name}': this cannot be the name of a file. Change the pattern, so that {{case}} is another text."
            for name in self.found.cases
            if not is_file_name(name)
        ]
        self.found.cases = dict(sorted(self.found.cases.items()))

    def _walk(self, folder: Path, below: str, above: tuple[str, ...]) -> Iterator[str]:
        """Yield the paths below a folder; those of folders end with a slash. Links are followed, not in circles."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.problems.append(f"The folder {folder} cannot be read: {reason_in_words(error)}.")
            return
        for name in (name for name in names if not name.startswith(".")):
            if not os.path.isdir(folder / name):
                yield f"{below}{name}"
                continue
            yield f"{below}{name}/"
            place = os.path.realpath(folder / name)
            if place not in above:
                yield from self._walk(folder / name, f"{below}{name}/", (*above, place))

    def _match(self, path: str) -> dict[str, str]:
        """Return the case, and of a scan the modality as the file spells it; labels come first; {} fits no pattern."""
        label = self.layout.label_pattern
        found = label.match(path) if label is not None else None
        return found or self.layout.pattern.match(path) or {}

    def _modality(self, fields: Mapping[str, str]) -> str | None:
        """Return the name in the dataset; None where it is not known."""
        return self._by_folded.get(fields[MODALITY].casefold())

    def _look_at(self, path: str) -> None:
        name, is_folder = path.rstrip("/"), path.endswith("/")
        if not name.endswith(self.layout.file_ending):
            misnamed = None if is_folder else misnamed_scan(self.folder / name, self.layout.file_ending)
            if misnamed is not None:
                wanted = f"{name[: len(name) - len(Path(name).name)]}{misnamed.name}"
                if self._match(wanted):
                    self._misnamed.append((name, wanted, misnamed.reason))
            return
        fields = self._match(name)
        if not fields:
            self.found.unused += [] if is_folder else [name]
            return
        case, file = fields[CASE], str(self.folder / name)
        if MODALITY not in fields:
            self._assign(file, self.found.labels, case, f"case '{case}': the label")
        elif (modality := self._modality(fields)) is None:
            self._unknown[fields[MODALITY]] += 1
        else:
            self._assign(file, self.found.cases.setdefault(case, {}), modality, f"case '{case}': {modality}")

    def _assign(self, file: str, files: dict[str, str], key: str, what: str) -> None:
        if reason := why_unusable(file):
            self.problems.append(f"{file}: {reason}")
        if key in files:
            self.problems.append(
                f"{what} has two files, {files[key]} and {file}. Leave one out (--ignore), or let {{case}} stand for "
                "more of the path."
            )
        files.setdefault(key, file)

    def _describe_unknown(self) -> str:
        names = [f"'{name}' ({counted(number, 'file')})" for name, number in sorted(self._unknown.items())]
        hints = "".join(sorted({nearest(name, list(self.layout.modalities.first_channels)) for name in self._unknown}))
        example = f"{min(self._unknown)}={self.layout.modalities.names[0]}"
        return (
            f"{counted(len(names), 'modality is', 'modalities are')} unknown: {enumerated(names, MOST_NAMED_FILES)}."
            f"{hints} The dataset has {', '.join(self.layout.modalities)}. Say which one is which, as in "
            f"--names {example}, or leave files out, as in --ignore '*{min(self._unknown)}*'."
        )


def find_files(folder: str | os.PathLike[str], layout: TreeLayout) -> FoundFiles:
    """Find the scans, and the labels, of all cases in a folder tree.

    Links are followed; hidden files and folders are passed over. Image files that fit no pattern are listed as unused.

    Raises:
        UserError: one error that lists every problem: a folder that cannot be read, a file that cannot be opened, two
            files of one case and modality, unknown modalities, a scan with another file ending; and when no file fits
            the pattern.
    """
    check_input_folder(folder)
    search = _Search(Path(folder), layout)
    search.run()
    if search.problems:
        raise UserError(
            f"The files in {folder} have {counted(len(search.problems), 'problem')}; nothing was done:\n"
            f"{listed(search.problems, MOST_NAMED_PROBLEMS)}"
        )
    if not search.found.cases:
        there = enumerated(search.found.unused, 5) or "none"
        raise UserError(
            f"No file in {folder} fits the pattern '{layout.pattern.text}'. Files that end with "
            f"'{layout.file_ending}' there: {there}."
        )
    return search.found
