"""The pages of the documentation: their text, their blocks of code, and the commands in them."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnunetv2_unimrseg.cli.main import COMMANDS, build_parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PLACES = ("scripts", "tests", "docs", "nnunetv2_unimrseg", "trainers", "planners")
NOT_OURS = ("git ", "pip ", "python ", "cp ", "mkdir ", "export ", "torchrun ")
"""Commands of the shell and of others."""

EXECUTABLE = re.compile(r"\b(unimrseg|nnUNetv2_\w+)\b")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", read(page), re.MULTILINE | re.DOTALL)


def messages(page: Path) -> list[str]:
    """Return the messages that a page quotes, one a line, with single spaces."""
    lines = "\n".join(blocks(page, "message")).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def without_blocks(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", read(page), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", without_blocks(page))


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of this package and of nnU-Net in a shell script; variables become 0."""
    text = re.sub(r"\$\{?\w+(:-\w*)?\}?", "0", text.replace("\\\n", " "))
    for line in text.splitlines():
        line = re.sub(r'eval "\$\((.*?)\)"', r"\1", line)
        words = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set(";&|()<>") or word in ("do", "then"):
                if command and EXECUTABLE.fullmatch(command[0]):
                    yield command
                command = []
            else:
                command.append(word)


class Found(Exception):
    """Carries the parser of a command of nnU-Net out of it."""


@functools.cache
def find_parser(command: str, subcommand: str) -> argparse.ArgumentParser:
    """Return the real parser: of nnU-Net's commands, the one that they are about to use."""
    if command == "unimrseg":
        assert subcommand in COMMANDS, f"there is no command unimrseg {subcommand}"
        return build_parser(subcommand)
    points = importlib.metadata.entry_points(group="console_scripts", name=command)
    assert points, f"nnU-Net has no command {command}"

    def give(parser: argparse.ArgumentParser, *_: object) -> None:
        raise Found(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", give)
        with pytest.raises(Found) as found:
            next(iter(points)).load()()
    return found.value.args[0]


def check_command(words: list[str]) -> None:
    own = words[0] == "unimrseg"
    parser = find_parser(words[0], words[1] if own else "")
    try:
        parser.parse_args(words[2:] if own else words[1:])
    except SystemExit as error:
        assert error.code == 0, f"{' '.join(words)} cannot be parsed"


# --- links and files


def slugs(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    headings = re.findall(r"^#{1,6} +(.+)$", without_blocks(page), re.MULTILINE)
    texts = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in texts}
