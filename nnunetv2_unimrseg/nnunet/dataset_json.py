"""What is wrong with a dataset.json: every mistake at once, each with the line to write instead."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nnunetv2_unimrseg.errors import UserError, counted, listed
from nnunetv2_unimrseg.modalities import EXAMPLE, as_json, channels_key, check_channels, check_groups, whole_number
from nnunetv2_unimrseg.nnunet.labels import check_labels, check_regions_class_order
from nnunetv2_unimrseg.nnunet.types import DatasetJson
from nnunetv2_unimrseg.utils.files import read_json

MOST_NAMED = 40

_CHANNELS = ("channel_names", "modality")
_KEYS = (*_CHANNELS, "labels", "numTraining", "file_ending")
_KNOWN = (*_KEYS, "regions_class_order", "overwrite_image_reader_writer", "dataset", "numTest", "training", "test")


@dataclass(frozen=True)
class _Mistake:
    """Sentences that say what is wrong, and the line to write instead; "" where they say themselves what to do."""

    sentences: list[str]
    line: str


def read_dataset_json(path: Path, *, raw: bool = False) -> DatasetJson:
    """Read a dataset.json and check it.

    Args:
        path: the file.
        raw: whether the file lies in nnUNet_raw (see `check_dataset_json`).

    Returns:
        The content as it is in the file.

    Raises:
        UserError: when the file is absent, is no JSON or holds no object, and for mistakes in it; names the file.
    """
    content = read_json(path)
    check_dataset_json(content, path, raw=raw)
    return cast(DatasetJson, content)


def check_dataset_json(content: Mapping[str, Any], source: str | os.PathLike[str], *, raw: bool = False) -> None:
    """Check what nnU-Net and this package take from a dataset.json.

    Args:
        content: what the file holds.
        source: the file's path, or words for it, with which the message starts.
        raw: whether it lies in nnUNet_raw. Only there nnU-Net uses `numTraining`, `dataset`, the readers and the order
            of channels; elsewhere the plans replace them.

    Raises:
        UserError: one error that lists every mistake and the corrected line for each.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{source} must hold a JSON object, found {as_json(content)}.")
    content, misspelt = _with_correct_keys(content)
    mistakes, channels = _check_channels(content, misspelt, raw)
    if channels and (found := check_groups(content, list(channels.values()))[0]):
        mistakes.append(_Mistake(found, ""))
    mistakes += _label_mistakes(content, misspelt)
    if raw:
        mistakes += _num_training_mistakes(content, source, misspelt)
    reader_mistakes, reader = _check_reader(content, raw)
    ending_mistakes, ending = _check_file_ending(content, misspelt, raw, reader)
    mistakes += reader_mistakes + ending_mistakes
    if raw:
        mistakes += _case_mistakes(content, channels, ending)
    if not mistakes:
        return
    entries = []
    for mistake in mistakes:
        *first, last = mistake.sentences
        entries += [*first, f"{last}\n    {mistake.line}" if mistake.line else last]
    raise UserError(f"{source} has {counted(len(entries), 'mistake')}:\n{listed(entries, MOST_NAMED)}")


def _write(key: str, value: object, *, example: bool = False) -> str:
    line = f'"{key}": {json.dumps(value, ensure_ascii=False)}'
    return f"Write, for example: {line}" if example else f"Write: {line}"


def _with_correct_keys(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the content with misspelt keys corrected, and these keys: correct spelling -> what the file has."""
    content, misspelt = dict(content), {}
    strange = {re.sub(r"[^a-z]", "", str(key).casefold()).rstrip("s"): key for key in content if key not in _KNOWN}
    for key in _KEYS:
        there = any(name in content for name in (_CHANNELS if key in _CHANNELS else (key,)))
        word = re.sub(r"[^a-z]", "", key.casefold()).rstrip("s")
        close = difflib.get_close_matches(word, list(strange), n=1, cutoff=0.82)
        if close and not there:
            misspelt[key] = strange.pop(close[0])
            content[key] = content.pop(misspelt[key])
    return content, misspelt


def _spelling(key: str, misspelt: Mapping[str, str]) -> list[str]:
    return [f'"{misspelt[key]}" is no key of dataset.json; it is called "{key}".'] if key in misspelt else []


def _check_channels(
    content: Mapping[str, Any], misspelt: Mapping[str, str], raw: bool
) -> tuple[list[_Mistake], dict[str, str]]:
    """Return the mistakes, and the channels corrected: number -> name."""
    key = channels_key(content)
    found, channels = check_channels(content)
    found = _spelling(key, misspelt) + found
    if raw and not found:
        found += _order_of_channels(content[key], key)
    if not channels:
        return [_Mistake(found, _write(key, EXAMPLE, example=True))], channels
    unchanged = content[key] == channels and not misspelt and list(content[key]) == list(channels)
    return [_Mistake(found, "" if unchanged else _write(key, channels))] if found else [], channels


def _order_of_channels(channels: Mapping[str, str], key: str) -> list[str]:
    """The planner takes the normalisers in the order of the file, the images in that of their numbers."""
    from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

    written = [get_normalization_scheme(name) for name in channels.values()]
    numbered = [get_normalization_scheme(channels[number]) for number in sorted(channels, key=int)]
    if written == numbered:
        return []
    return [
        f'"{key}" has the channels in the order {", ".join(map(str, channels))}, and nnU-Net would give them each '
        "other's normalisation, since it takes that in the order of the file."
    ]


def _label_mistakes(content: Mapping[str, Any], misspelt: Mapping[str, str]) -> Iterator[_Mistake]:
    if "labels" not in content:
        yield _Mistake(['"labels" is absent.'], _write("labels", {"background": 0, "tumour": 1}, example=True))
        return
    checked = check_labels(content["labels"])
    found = _spelling("labels", misspelt) + checked.found
    if found and checked.labels is None:
        yield _Mistake(found, _write("labels", checked.example, example=True))
    elif found:
        also = " (the label files must hold these values, too)" if checked.renumbered else ""
        yield _Mistake(found, _write("labels", checked.labels) + also)
    found, order = check_regions_class_order(content.get("regions_class_order"), checked.regions)
    if found:
        yield _Mistake(found, _write("regions_class_order", order) if order else "")


def _num_training_mistakes(
    content: Mapping[str, Any], source: str | os.PathLike[str], misspelt: Mapping[str, str]
) -> Iterator[_Mistake]:
    found, given = _spelling("numTraining", misspelt), content.get("numTraining")
    number = whole_number(given)
    if "numTraining" not in content:
        found.append('"numTraining" is absent; it is the number of training cases.')
    elif number is None or isinstance(given, str | float):
        found.append(f'"numTraining" is {as_json(given)}, but it must be a whole number, the number of training cases.')
    elif number < 1:
        found.append(f'"numTraining" is {number}, but it must be at least 1.')
    if found:
        known = number if number is not None and number > 0 else _number_of_cases(content, source)
        yield _Mistake(found, _write("numTraining", known or 20, example=not known))


def _number_of_cases(content: Mapping[str, Any], source: str | os.PathLike[str]) -> int:
    if isinstance(content.get("dataset"), list | dict):
        return len(content["dataset"])
    if not isinstance(source, Path) or not isinstance(content.get("file_ending"), str):
        return 0
    images = re.compile(r"(.+)_\d{4}" + re.escape(content["file_ending"]))
    names = [images.fullmatch(file.name) for file in (source.parent / "imagesTr").glob("*")]
    return len({name[1] for name in names if name})


def _check_file_ending(
    content: Mapping[str, Any], misspelt: Mapping[str, str], raw: bool, reader: str
) -> tuple[list[_Mistake], str]:
    """Return the mistakes, and the ending corrected; `reader` is the name of the reader, "" where there is none."""
    found, given = _spelling("file_ending", misspelt), content.get("file_ending")
    example = not isinstance(given, str)
    ending = given.strip().lstrip("*") if isinstance(given, str) else ".nii.gz"
    if "file_ending" not in content:
        found.append('"file_ending" is absent.')
    elif not isinstance(given, str):
        found.append(f'"file_ending" is {as_json(given)}, but it must be text.')
    else:
        endings = _readers_and_endings()[1] if raw or not ending.startswith(".") else []
        if not ending.startswith(".") and (not reader or "." not in ending or f".{ending}".lower() in endings):
            ending, example = (f".{ending}", False) if ending else (".nii.gz", True)
            found.append(f'"file_ending" is {as_json(given)}, but it must start with a dot.')
        elif ending != given:
            found.append(f'"file_ending" is {as_json(given)}, but it must be only the end of the file names.')
        if raw and not reader and ending.lower() not in endings:
            found.append(
                f'"file_ending" is {as_json(given)}, which no reader of nnU-Net takes. It takes {", ".join(endings)}; '
                "convert images that are of another format."
            )
            close = difflib.get_close_matches(ending.lower(), endings, n=1, cutoff=0.7)
            ending, example = (close or [".nii.gz"])[0], not close
    return [_Mistake(found, _write("file_ending", ending, example=example))] if found else [], ending


def _check_reader(content: Mapping[str, Any], raw: bool) -> tuple[list[_Mistake], str]:
    """Return the mistakes, and the name of nnU-Net's reader; "" where none, or none that nnU-Net has, is named."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    name = content.get("overwrite_image_reader_writer", "None")
    if name == "None" or not raw:
        return [], "" if name == "None" else str(name)
    by_folded = {known.casefold(): known for known in sorted(_readers_and_endings()[0])}
    found, close = f'"overwrite_image_reader_writer" is {as_json(name)}, but it must be the name of a reader.', []
    if isinstance(name, str):
        try:
            recursive_find_reader_writer_by_name(name)
            return [], name
        except RuntimeError:
            found = f'"overwrite_image_reader_writer" names the reader {as_json(name)}, which nnU-Net does not have.'
        close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.5)
    right = by_folded[close[0]] if close else ""
    also = "" if right else " (nnU-Net then chooses by the file ending)"
    found += f" There are: {', '.join(by_folded.values())}."
    return [_Mistake([found], _write("overwrite_image_reader_writer", right or "None") + also)], right


def _readers_and_endings() -> tuple[list[str], list[str]]:
    """Return the names of nnU-Net's readers, and the endings that it chooses them by."""
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    endings = {ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}
    return [reader.__name__ for reader in LIST_OF_IO_CLASSES], sorted(endings)


def _case_mistakes(content: Mapping[str, Any], channels: Mapping[str, str], ending: str) -> Iterator[_Mistake]:
    """Yield what is wrong with the explicit list of training cases."""
    if "dataset" not in content:
        return
    cases = content["dataset"]
    if not isinstance(cases, Mapping):
        what = f'"dataset" is {_kind(cases)}, but it must be an object from the names of the cases to their files.'
        first = cases[0] if isinstance(cases, list) and cases and isinstance(cases[0], Mapping) else {}
        label = first.get("label")
        name = Path(label).name.removesuffix(ending) if isinstance(label, str) else "case_1"
        _, entry, _ = _checked_case(name, first, channels, ending)
        yield _Mistake([what], _write("dataset", {name: entry}, example=True))
        return
    for name, given in cases.items():
        found, entry, guessed = _checked_case(name, given, channels, ending)
        if found:
            yield _Mistake(found, _write(name, entry, example=guessed))


def _checked_case(
    name: str, given: object, channels: Mapping[str, str], ending: str
) -> tuple[list[str], dict[str, Any], bool]:
    """Return what is wrong with a case, its entry corrected, and whether file names in that are guessed."""
    images = [f"imagesTr/{name}_{number:04d}{ending}" for number in range(len(channels) or len(EXAMPLE))]
    entry: dict[str, Any] = {"images": images, "label": f"labelsTr/{name}{ending}"}
    where = f'the case "{name}" in "dataset"'
    if not isinstance(given, Mapping):
        return (
            [f'The value of {where} is {_kind(given)}, but it must be an object with "images" and "label".'],
            entry,
            True,
        )
    found, guessed = [], False
    if isinstance(given.get("images"), list) and given["images"] and _all_text(given["images"]):
        entry["images"] = given["images"]
    elif "images" in given:
        found.append(f'"images" of {where} is {as_json(given["images"])}, but it must be a list of file names.')
        guessed |= not isinstance(given["images"], str)
        entry["images"] = images if guessed else [given["images"]]
    else:
        found.append(f'{where[0].upper()}{where[1:]} lacks "images".')
        guessed = True
    if isinstance(given.get("label"), str):
        entry["label"] = given["label"]
    elif "label" in given:
        found.append(f'"label" of {where} is {as_json(given["label"])}, but it must be the name of one file.')
        alone = isinstance(given["label"], list) and len(given["label"]) == 1 and _all_text(given["label"])
        entry["label"] = given["label"][0] if alone else entry["label"]
        guessed |= not alone
    else:
        found.append(f'{where[0].upper()}{where[1:]} lacks "label" (that of an unlabelled case is "").')
        guessed = True
    return found, entry, guessed


def _all_text(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else as_json(value)
