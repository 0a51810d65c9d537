"""Writes the two reference pages that come from the code: every command, every configuration field.

    python scripts/docs_reference.py            writes docs/reference/commands.md and docs/reference/configuration.md
    python scripts/docs_reference.py --check    writes nothing; exit code 1 where a page is not what the code says

The pages are checked in, so that they can be read without building the site; a test checks that they are current.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from nnunetv2_unimrseg.cli.main import COMMANDS, build_parser
from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.config_fields import allowed_range
from nnunetv2_unimrseg.recipes import RECIPES
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
MADE_BY = "<!-- Written by scripts/docs_reference.py: change the code, then run it again. -->"
READ_FROM_ENVIRONMENT = ("nnUNet_npp", "nnUNet_nps")
"""Variables that change defaults which the help shows."""

_COLUMNS = re.compile(r"\S {3,}\S")
_LIST_ITEM = "\n\n:   "


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say which pages are not current")
    check = parser.parse_args().check
    outdated = [name for name, text in pages().items() if _read(FOLDER / name) != text]
    for name in outdated:
        if check:
            print(f"docs/reference/{name} is not what the code says. Run: python scripts/docs_reference.py")
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / name).write_text(pages()[name], encoding="utf-8")
            print(f"Wrote docs/reference/{name}")
    return int(check and bool(outdated))


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    kept = {name: os.environ.pop(name) for name in READ_FROM_ENVIRONMENT if name in os.environ}
    try:
        return {"commands.md": commands_page(), "configuration.md": configuration_page()}
    finally:
        os.environ.update(kept)


def commands_page() -> str:
    """Return the page of the commands, made from their parsers."""
    lines = [
        "# Commands",
        MADE_BY,
        "Every command has `-h`. Flags that nnU-Net also has keep nnU-Net's spelling. Exit codes: 2 after an error "
        "that you can mend, which is one message without a traceback; 130 after Ctrl-C; 1 when `evaluate` or "
        "`reconstruct` finished but a case failed. `train` ends with the exit code of the stage that failed.",
    ]
    for command in COMMANDS:
        parser = build_parser(command)
        lines += [f"## unimrseg {command}", *_description(parser.description or ""), _usage(parser)]
        lines += [_argument(action) for action in parser._actions if "--help" not in action.option_strings]
    return "\n\n".join(lines) + "\n"


def _description(text: str) -> Iterator[str]:
    """Yield its paragraphs; lines that are set in columns stay as they are."""
    for paragraph in text.split("\n\n"):
        if _COLUMNS.search(paragraph):
            yield f"```text\n{paragraph}\n```"
        else:
            yield _plain(" ".join(paragraph.split()))


def _usage(parser: argparse.ArgumentParser) -> str:
    words = [parser.prog]
    words += [_shown(action) for action in parser._actions if action.required]
    more = any(not action.required and action.dest != "help" for action in parser._actions)
    return "```text\n" + " ".join([*words, *(["[OPTIONS]"] if more else [])]) + "\n```"


def _shown(action: argparse.Action) -> str:
    value = _value(action)
    return " ".join(filter(None, [action.option_strings[0] if action.option_strings else "", value]))


def _value(action: argparse.Action) -> str:
    """Return what stands for the values of an argument, as argparse shows them."""
    if action.nargs == 0:
        return ""
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    if action.choices and not action.metavar:
        name = "{" + ",".join(map(str, action.choices)) + "}"
    if isinstance(name, tuple):
        return " ".join(name)
    if isinstance(action.nargs, int):
        return " ".join([name] * action.nargs)
    return f"{name} [{name} ...]" if action.nargs == "+" else name


def _argument(action: argparse.Action) -> str:
    names = " or ".join(f"`{name}`" for name in action.option_strings)
    value = _value(action)
    term = " ".join(filter(None, [names, f"`{value}`" if value else ""]))
    meaning = (action.help or "") % {**vars(action), "prog": ""}
    required = "" if not action.option_strings or not action.required else " (required)"
    return f"{term}{required}{_LIST_ITEM}{_sentence(_plain(meaning))}"


def configuration_page() -> str:
    """Return the page of the configuration, made from its dataclasses."""
    lines = [
        "# Configuration",
        MADE_BY,
        "Every hyper-parameter has a default. What you change is kept in the plans file, under the key `unimrseg` of "
        "a configuration, and recorded in `plans.json` beside the checkpoints. Show and change it with "
        "[`unimrseg configure`](commands.md#unimrseg-configure):",
        "```bash\nunimrseg configure -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans --set stage1.num_epochs=50\n"
        "unimrseg configure -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans --unset stage1.num_epochs\n```",
        "Without `--recipe`, `--set` and `--unset` the command lists all values that are in force. An unknown name or "
        "a value out of range is refused, and all mistakes are listed at once.",
    ]
    config = UniMRSegConfig()
    lines += ["## Recipes", *_recipes(config)]
    for section in dataclasses.fields(config):
        values = getattr(config, section.name)
        lines += [
            f"## {section.name}",
            f"Read by `{TRAINER_OF_SECTION[section.name]}`. " + _plain(" ".join((type(values).__doc__ or "").split())),
        ]
        lines += [_field(section.name, field, getattr(values, field.name)) for field in dataclasses.fields(values)]
    return "\n\n".join(lines) + "\n"


def _recipes(config: UniMRSegConfig) -> Iterator[str]:
    """Yield how recipes are used, and a table of each."""
    yield "A recipe sets several values at once; `--set` and `--unset` in the same command override it."
    yield (
        "```bash\nunimrseg configure -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans --recipe short\n"
        "unimrseg configure -d 900 -c 3d_fullres -p nnUNetUniMRSegPlans --recipe default\n```"
    )
    defaults = config.to_dict()
    for name, (about, settings) in RECIPES.items():
        yield f"`{name}`{_LIST_ITEM}{about}"
        rows = [
            f"| `{section}.{field}` | {json.dumps(value)} | {json.dumps(defaults[section][field])} |"
            for section, fields in settings.items()
            for field, value in fields.items()
        ]
        if rows:
            yield "\n".join(["| field | value | default |", "|---|---|---|", *rows])


def _field(section: str, field: dataclasses.Field, default: object) -> str:
    """Return the entry of a field: its name, default and range, and its meaning below."""
    values = f"Default `{json.dumps(default)}`; {allowed_range(field)}."
    return f"`{section}.{field.name}`{_LIST_ITEM}{values}\n\n    {_plain(field.metadata['doc'])}"


def _plain(text: str) -> str:
    """Return text as Markdown that shows it as it is."""
    for mark in ("\\", "<", "*", "["):
        text = text.replace(mark, {"<": "&lt;"}.get(mark, f"\\{mark}"))
    return text


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:] if re.match(r"[a-z]+\b(?![_.])", text) else text
    return text if text.endswith((".", "?")) else f"{text}."


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
