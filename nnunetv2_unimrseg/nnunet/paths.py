"""nnU-Net's folders and files, found without importing nnU-Net: datasets, plans, results.

Everything here follows nnU-Net's naming; what differs is that each thing not found is one `UserError` that says where
it was looked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.errors import UserError, nearest
from nnunetv2_unimrseg.utils.files import read_json

RAW = "nnUNet_raw"
VARIABLES = (RAW, "nnUNet_preprocessed", "nnUNet_results")


def nnunet_folder(variable: str) -> Path:
    """Return the folder that one of nnU-Net's three variables names. See `require_folders` for its error."""
    require_folders(variable)
    return Path(os.environ[variable])


def require_folders(*variables: str) -> None:
    """Check that nnU-Net's variables are set.

    Raises:
        UserError: one error naming all that are not set and how to set them.
    """
    unset = [variable for variable in variables if not os.environ.get(variable)]
    if unset:
        lines = "\n".join(f"  export {variable}=/path/to/{variable}" for variable in unset)
        raise UserError(
            f"{_enumerated(unset)} {'is' if len(unset) == 1 else 'are'} not set, so nnU-Net's data cannot be found. "
            f"Set the variable{'s' if len(unset) > 1 else ''} before the command:\n{lines}"
        )


def _enumerated(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def fold_name(text: str) -> str:
    """Return the name of a fold, "0", "1", ... or "all", as it stands in `fold_X`.

    Raises:
        UserError: for anything else.
    """
    if text != "all" and not text.isdecimal():
        raise UserError(f"The fold must be a number (0 to 4) or 'all', found '{text}'.")
    return text if text == "all" else str(int(text))


def find_dataset(name_or_id: str | int, *variables: str) -> str:
    """Return the name of a dataset ("Dataset001_Brain") given by name or number.

    Args:
        name_or_id: "Dataset001_Brain", "1" or 1.
        variables: the variables of `VARIABLES` in whose folders the dataset must be, each of them.

    Raises:
        UserError: when there is none, when a number means two datasets, or when a variable is not set.
    """
    require_folders(*variables)
    text = str(name_or_id)
    known = _dataset_names(*VARIABLES)
    if not text.startswith("Dataset") and not text.isdigit():
        raise UserError(f"'{text}' is neither a dataset's number nor its name 'DatasetXXX_Name'.{nearest(text, known)}")
    candidates = [name for name in known if _is_called(name, text)]
    if len(candidates) > 1:
        raise UserError(
            f"Dataset number {text} is not unique: {', '.join(candidates)}. nnU-Net needs one dataset a number; "
            "rename one of them in every nnU-Net folder."
        )
    for variable in variables:
        there = _dataset_names(variable)
        if not set(candidates) & set(there):
            what_to_do = _how_to_make(variable, candidates, text)
            raise UserError(
                f"Dataset {candidates[0] if candidates else text} is not in {variable} ({os.environ[variable]})."
                f"{nearest(text, there)} It holds: {', '.join(there) or 'no datasets'}.{what_to_do}"
            )
    if not candidates:
        raise UserError(
            f"Dataset {text} is in none of nnU-Net's folders. They hold: {', '.join(known) or 'no datasets'}."
        )
    return candidates[0]


def _how_to_make(variable: str, names: Sequence[str], name_or_id: str) -> str:
    if variable == RAW:
        return ""
    if variable == "nnUNet_results":
        if not set(names) & set(_dataset_names("nnUNet_preprocessed")):
            return ""
        return f" No model of it is trained yet: `unimrseg train {name_or_id} CONFIGURATION FOLD -p PLANS` trains one."
    if set(names) & set(_dataset_names(RAW)):
        return f" `unimrseg plan -d {name_or_id}` makes it."
    raw = f"nnUNet_raw ({os.environ[RAW]})" if os.environ.get(RAW) else "nnUNet_raw, which is not set,"
    return f" It is not in {raw} either, so it cannot be made."


def refuse_known_dataset(number: int, name: str) -> None:
    """Check that none of nnU-Net's folders has a dataset of this number or this name (the part after `DatasetXXX_`).

    Raises:
        UserError: when one has; names it and the next number that is free.
    """
    known = _dataset_names(*VARIABLES)
    taken = [one for one in known if _is_called(one, str(number)) or one.partition("_")[2] == name]
    if taken:
        free = next(free for free in range(number, 10**4) if not any(_is_called(one, str(free)) for one in known))
        raise UserError(
            f"There is a dataset of this number or name already: {', '.join(taken)}. Choose another number (-d {free} "
            "is free) and name (--name)."
        )


def dataset_id(dataset: str) -> int:
    """Return the number of a dataset's name, 1 of "Dataset001_Brain"."""
    return int(dataset[len("Dataset") :][:3])


def preprocessing_command(dataset: str, plans_identifier: str, configurations: Sequence[str]) -> str:
    """Return the command that preprocesses a dataset, incomplete cases too, with the plans that it has."""
    return (
        f"unimrseg plan -d {dataset_id(dataset)} -overwrite_plans_name {plans_identifier} "
        f"-c {' '.join(configurations)} --preprocess-only"
    )


def _is_called(name: str, name_or_id: str) -> bool:
    return name == name_or_id or (name_or_id.isdigit() and name.startswith(f"Dataset{int(name_or_id):03d}"))


def _dataset_names(*variables: str) -> list[str]:
    folders = [Path(os.environ[variable]) for variable in variables if os.environ.get(variable)]
    return sorted({entry.name for folder in folders for entry in folder.glob("Dataset*") if entry.is_dir()})


def plans_path(dataset: str, plans_identifier: str) -> Path:
    """Return where the plans of a dataset lie in nnUNet_preprocessed."""
    return nnunet_folder("nnUNet_preprocessed") / dataset / f"{plans_identifier}.json"


def read_plans(dataset: str, plans_identifier: str, flag: str = "-p") -> dict[str, Any]:
    """Read a plans file of a dataset; `flag` is the command's for their name, for the message.

    Raises:
        UserError: when there is none of that name (names those there are), or when it is damaged.
    """
    path = plans_path(dataset, plans_identifier)
    if not path.is_file():
        others = [file.stem for file in sorted(path.parent.glob("*.json")) if _is_plans(file)]
        raise UserError(
            f"There are no plans '{plans_identifier}' in {path.parent}.{nearest(plans_identifier, others)} "
            f"There are: {', '.join(others) or 'none'}. Choose with {flag}, or make some with "
            f"`unimrseg plan -d {dataset}`."
        )
    plans = read_json(path)
    if not isinstance(plans.get("configurations"), dict):
        raise UserError(f"{path} is no plans file: it has no 'configurations'.")
    return plans


def _is_plans(file: Path) -> bool:
    try:
        return isinstance(read_json(file).get("configurations"), dict)
    except UserError:
        return False


def read_configuration(
    dataset: str, plans_identifier: str, configuration: str
) -> tuple[dict[str, Any], UniMRSegConfig]:
    """Read the plans of a dataset and the UniMRSeg settings of one of their configurations.

    Raises:
        UserError: also when the plans have no such configuration (with the nearest), or a setting is wrong.
    """
    plans = read_plans(dataset, plans_identifier)
    return plans, UniMRSegConfig.from_plans(plans, configuration)


def inherited_value(plans: Mapping[str, Any], configuration: str, key: str) -> Any:
    """Return an entry of a configuration, following `inherits_from`; None where there is none."""
    entries = plans["configurations"].get(configuration, {})
    if key in entries or "inherits_from" not in entries:
        return entries.get(key)
    return inherited_value(plans, entries["inherits_from"], key)


def result_folder(dataset: str, trainer: str, plans_identifier: str, configuration: str) -> Path:
    """Return the folder in nnUNet_results that holds the folds of one trained model."""
    return nnunet_folder("nnUNet_results") / dataset / f"{trainer}__{plans_identifier}__{configuration}"
