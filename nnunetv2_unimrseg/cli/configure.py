"""Show the hyper-parameters in a plans file, or set them.

Values are checked all together before anything is written. Without --recipe, --set and --unset it lists every name
with its value, range and meaning.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2_unimrseg.config import PLANS_KEY, UniMRSegConfig
from nnunetv2_unimrseg.config_fields import allowed_range
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.nnunet.paths import (
    find_dataset,
    inherited_value,
    plans_path,
    read_plans,
    require_folders,
    result_folder,
)
from nnunetv2_unimrseg.recipes import RECIPES, apply_recipe
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION
from nnunetv2_unimrseg.utils.files import write_json

RESULTS = "nnUNet_results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `unimrseg configure`."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="number or name of the dataset")
    parser.add_argument("-c", required=True, metavar="CONFIGURATION", help="configuration, such as 3d_fullres")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: nnUNetPlans)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.NAME=VALUE",
        help="set these values, as in stage1.num_epochs=50",
    )
    parser.add_argument(
        "--unset",
        nargs="+",
        action="extend",
        default=[],
        metavar="SECTION.NAME",
        help="set them back to the defaults",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="set the choices of a recipe, and those of other recipes back to the defaults; --set and --unset "
        "override it",
    )
    parser.add_argument("--json", action="store_true", help="print every value in force as JSON")


def run(args: argparse.Namespace) -> None:
    """Show or change the configuration of `args.c`."""
    require_folders("nnUNet_preprocessed")
    dataset = find_dataset(args.d, "nnUNet_preprocessed")
    if args.recipe or args.set or args.unset:
        current = write_settings(dataset, args.p, args.c, args.set, args.unset, args.recipe)
        messages = [f"Wrote {plans_path(dataset, args.p)}", *_hints_of_results(dataset, args)]
        print("\n".join(messages), file=sys.stderr if args.json else sys.stdout)
    else:
        plans = read_plans(dataset, args.p)
        UniMRSegConfig.from_plans(plans, args.c)
        current = inherited_value(plans, args.c, PLANS_KEY) or {}
    config = UniMRSegConfig.from_dict(current)
    if args.json:
        print(json.dumps(config.to_dict(), indent=4))
    elif not (args.recipe or args.set or args.unset):
        print(table(config, current))


def write_settings(
    dataset: str,
    plans_identifier: str,
    configuration: str,
    assignments: Sequence[str],
    removals: Sequence[str],
    recipe: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Change the settings of a configuration in a plans file, as `changed` does; return what it then sets.

    A `recipe` is applied first.

    Raises:
        UserError: before anything is written, see `changed`; also when the plans have no such configuration.
    """
    plans = read_plans(dataset, plans_identifier)
    UniMRSegConfig.from_plans(_without_settings(plans), configuration)  # the changes may correct wrong values
    current = inherited_value(plans, configuration, PLANS_KEY) or {}
    settings = changed(apply_recipe(recipe, current) if recipe else current, assignments, removals)
    _store_settings(plans["configurations"][configuration], settings)
    write_json(plans_path(dataset, plans_identifier), plans)
    return settings


def _store_settings(configuration: dict[str, Any], settings: dict[str, Any]) -> None:
    """Store the settings. Without any the entry is removed, unless inherited settings would then apply again."""
    if settings or "inherits_from" in configuration:
        configuration[PLANS_KEY] = settings
    else:
        configuration.pop(PLANS_KEY, None)


def _without_settings(plans: Mapping[str, Any]) -> dict[str, Any]:
    configurations = {
        name: {key: value for key, value in entries.items() if key != PLANS_KEY}
        for name, entries in plans["configurations"].items()
    }
    return {**plans, "configurations": configurations}


def changed(
    current: Mapping[str, Mapping[str, Any]], assignments: Sequence[str], removals: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return `current` with `section.name=value` assignments made and `section.name` entries removed.

    Values are read as JSON where they are JSON (`2`, `true`, `0.5`, `""`), else as text.

    Raises:
        UserError: one error that lists every malformed assignment, unknown name and value out of range.
    """
    if not isinstance(current, Mapping) or not all(isinstance(values, Mapping) for values in current.values()):
        UniMRSegConfig.from_dict(current)
    result = {section: copy.deepcopy(dict(values)) for section, values in current.items()}
    malformed = [entry for entry in assignments if "=" not in entry or "." not in entry.split("=")[0]]
    malformed += [entry for entry in removals if "." not in entry or "=" in entry]
    unknown = []
    for entry in removals:
        section, _, name = entry.partition(".")
        if name in result.get(section, {}):
            del result[section][name]
        elif entry not in malformed and name not in UniMRSegConfig().to_dict().get(section, {}):
            unknown.append((section, name))
    for entry in assignments:
        if entry not in malformed:
            key, text = entry.split("=", 1)
            section, name = key.split(".", 1)
            result.setdefault(section, {})[name] = _parse_value(text, is_text=_is_text(section, name))
    result = {section: values for section, values in result.items() if values}
    _check(result, unknown, malformed)
    return result


def _check(
    settings: Mapping[str, Mapping[str, Any]], unknown: Sequence[tuple[str, str]], malformed: Sequence[str]
) -> None:
    """Raise one error for wrong settings, removals of unknown names and assignments that cannot be read."""
    with_unknown = {section: dict(values) for section, values in settings.items()}
    for section, name in unknown:
        with_unknown.setdefault(section, {})[name] = None
    problems = []
    if malformed:
        problems.append(
            f"Cannot read {', '.join(map(repr, malformed))}. "
            "Write --set SECTION.NAME=VALUE, as in --set stage1.num_epochs=50, and --unset SECTION.NAME."
        )
    try:
        UniMRSegConfig.from_dict(with_unknown)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def _is_text(section: str, name: str) -> bool:
    return isinstance(UniMRSegConfig().to_dict().get(section, {}).get(name), str)


def _parse_value(text: str, *, is_text: bool) -> object:
    """Read JSON. Other text stays text, and so do numbers that are not finite and numbers for a field of text."""
    try:
        value = json.loads(text, parse_constant=str)
    except json.JSONDecodeError:
        return text
    return text if is_text and not isinstance(value, str) else value


def table(config: UniMRSegConfig, current: Mapping[str, Mapping[str, Any]]) -> str:
    """Return every section, name and value with its range and meaning; `*` marks what `current` sets."""
    lines = ["* set in the plans; the others are defaults"]
    for section in dataclasses.fields(config):
        lines += ["", f"[{section.name}]  {TRAINER_OF_SECTION[section.name]}"]
        values = getattr(config, section.name)
        for field in dataclasses.fields(values):
            marker = "*" if field.name in current.get(section.name, {}) else " "
            value = json.dumps(getattr(values, field.name))
            lines.append(f"{marker} {section.name}.{field.name} = {value}   ({allowed_range(field)})")
            lines += textwrap.wrap(
                field.metadata["doc"], width=100, initial_indent="      ", subsequent_indent="      "
            )
    return "\n".join(lines)


def _hints_of_results(dataset: str, args: argparse.Namespace) -> list[str]:
    if not os.environ.get(RESULTS):
        return []
    folders = [result_folder(dataset, trainer, args.p, args.c) for trainer in TRAINER_OF_SECTION.values()]
    return [
        f"{folder.name} has been trained already: its plans.json keeps the values it was trained with, until a fold "
        "is trained or resumed there."
        for folder in folders
        if (folder / "plans.json").is_file()
    ]
