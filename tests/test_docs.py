"""The documentation: links, commands, settings and messages on its pages are those of the code; the tutorial runs."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docs_reference
import pytest
from conftest import SECTIONS
from documentation import (
    DOCS,
    EXECUTABLE,
    NOT_OURS,
    PAGES,
    PLACES,
    ROOT,
    blocks,
    check_command,
    find_parser,
    inline_code,
    messages,
    name,
    read,
    shell_commands,
    slugs,
    without_blocks,
)

import nnunetv2_unimrseg
from nnunetv2_unimrseg.cli.main import COMMANDS
from nnunetv2_unimrseg.config import UniMRSegConfig


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(page)):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f"{target} does not exist"
        assert DOCS in linked.parents, f"{target} lies outside of docs/ and is not part of the site"
        if anchor and linked.suffix == ".md":
            assert anchor in slugs(linked), f"{target}: there is no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_file_of_the_repository_that_is_named_exists(page):
    for code in inline_code(page):
        path = code.split()[0].rstrip("/:")
        if path.startswith(tuple(f"{place}/" for place in PLACES)) and "*" not in path:
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_every_page_is_in_the_navigation_and_nothing_else():
    in_navigation = re.findall(r": ([\w/-]+\.md)$", read(ROOT / "mkdocs.yml"), re.MULTILINE)
    assert sorted(in_navigation) == sorted(name(page) for page in PAGES)


def test_the_readme_links_to_pages_that_exist():
    for target in re.findall(r"\]\((docs/[^)#\s]+)", read(ROOT / "README.md")):
        assert (ROOT / target).is_file(), target


# --- commands, flags, settings, files


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_command_can_be_parsed(page):
    for block in blocks(page, "bash"):
        found = list(shell_commands(block))
        for words in found:
            check_command(words)
        code = [line for line in block.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        named = sum(len(EXECUTABLE.findall(line)) for line in code if not line.startswith(NOT_OURS))
        assert len(found) == named, f"{name(page)}: not every command of this block was understood:\n{block}"


@functools.cache
def options() -> dict[str, set[str]]:
    """Return the flags of every command of this package and of nnU-Net."""
    commands = [("unimrseg", command) for command in COMMANDS]
    points = importlib.metadata.entry_points(group="console_scripts")
    with_parser = ("train", "predict", "predict_from_modelfolder", "plan_and_preprocess", "preprocess")
    more = [*with_parser, "export_model_to_zip", "install_pretrained_model_from_zip"]
    commands += [(point.name, "") for point in points if point.name in {f"nnUNetv2_{each}" for each in more}]
    return {f"{one} {two}".strip(): set(find_parser(one, two)._option_string_actions) for one, two in commands}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_flag_in_the_text_exists(page):
    known = options()
    every = {flag for flags in known.values() for flag in flags} | {"--strict", "--check", "--shm-size", "--node-rank"}
    for code in inline_code(page):
        words = code.replace("=", " ").split()
        if re.match(r"--?[a-zA-Z]", code):
            used, allowed = words, every
        elif words[:1] == ["unimrseg"] and len(words) > 1 and words[1] in COMMANDS:
            used, allowed = words[2:], known[f"unimrseg {words[1]}"]
        elif words[0] in known:
            used, allowed = words[1:], known[words[0]]
        else:
            continue
        wrong = [word for word in used if re.fullmatch(r"--?[a-zA-Z][\w-]*", word) and word not in allowed]
        assert not wrong, f"`{code}` has {', '.join(wrong)}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_setting_in_the_text_exists(page):
    settings = UniMRSegConfig().to_dict()
    for section, field in re.findall(rf"\b({'|'.join(SECTIONS)})\.([a-z]\w*)", read(page)):
        assert field in settings[section], f"{section}.{field}"


def test_every_setting_on_the_page_of_the_method_exists():
    settings = {field for section in UniMRSegConfig().to_dict().values() for field in section}
    codes = [code.partition(":")[0] for code in inline_code(DOCS / "method.md")]
    named = {code for code in codes if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", code)} - {"no_grad"}
    assert len(named) >= 10 and not named - settings, named - settings


VARYING = r"CASE(?:_XXXX)?|SUBSET|FOLDER|\.nii\.gz|(?<=folds)_0$|nnUNetUniMRSegPlans|_3d_fullres|fold_X"
"""Parts of file names that differ from case to case."""


def test_every_file_in_the_reference_is_written_by_the_code():
    strings = corpus()
    for row in re.findall(r"^\| (`.+?) \|", read(DOCS / "reference" / "files.md"), re.MULTILINE):
        for file in re.findall(r"`([^`]+)`", row):
            for piece in re.split(VARYING, file.split("/")[-1]):
                piece = piece.strip("._")
                assert piece in strings, f"nothing in the code is called {piece}"


def test_the_generated_pages_are_current():
    for file, text in docs_reference.pages().items():
        assert read(DOCS / "reference" / file) == text, f"{file} is not current: python scripts/docs_reference.py"


def test_every_public_name_is_in_the_python_reference():
    text = read(DOCS / "reference" / "python.md")
    for public, module in nnunetv2_unimrseg._MODULES.items():
        assert f"::: nnunetv2_unimrseg.{module}.{public}\n" in text, public
    for path in re.findall(r"^::: (\S+)$", text, re.MULTILINE):
        module, _, member = path.rpartition(".")
        assert hasattr(importlib.import_module(module), member), path
        assert member in nnunetv2_unimrseg.__all__, f"{member} is not public"


# --- numbers


NUMBER = r"(?<![\w.])[+-]?\d+\.\d(?![\d.])"
"""A number with one decimal, as every Dice value on the page of the benchmarks."""


def test_the_conclusions_quote_numbers_of_the_tables():
    page, readme = read(DOCS / "benchmarks.md"), read(ROOT / "README.md")
    tables = "\n".join(re.findall(r"<!-- benchmark:\w+ -->\n(.*?)<!-- /benchmark -->", page, re.DOTALL))
    measured = {number.lstrip("+-") for number in re.findall(NUMBER, tables)}
    summary = page.partition("## What you will get")[2].partition("\n## ")[0]
    results = readme.partition("**What to expect.**")[2].partition("\n\n")[0]
    for text in (summary, results):
        quoted = [number.lstrip("+-") for number in re.findall(NUMBER, text)]
        assert len(quoted) >= 6 and not set(quoted) - measured, sorted(set(quoted) - measured)


# --- messages


PLACEHOLDER = "\0"
SHORTEST = 8
"""Letters of a piece of a message that is looked for."""


def find_strings(source: str) -> Iterator[str]:
    """Yield the texts of a module; what is formatted into them becomes `PLACEHOLDER`."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            values = [part.value if isinstance(part, ast.Constant) else PLACEHOLDER for part in node.values]
            yield "".join(map(str, values))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            yield "".join(
                side.value if isinstance(side, ast.Constant) and isinstance(side.value, str) else PLACEHOLDER
                for side in (node.left, node.right)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def squeezed(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def corpus() -> str:
    """Return every text in the code of this package, of nnU-Net and of what runs its worker processes."""
    import batchgenerators
    import nnunetv2
    import torch

    folders = [ROOT / folder for folder in ("nnunetv2_unimrseg", "trainers", "planners")]
    folders += [Path(module.__path__[0]) for module in (nnunetv2, batchgenerators)]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    files += [Path(torch.__path__[0]) / "cuda" / "__init__.py", Path(os.__file__).parent / "multiprocessing/spawn.py"]
    found = [squeezed(text) for file in files for text in find_strings(read(file))]
    shell = subprocess.run(["bash", "-c", "no_such_command"], capture_output=True, text=True, env={"LC_ALL": "C"})
    return "\n".join([*found, shell.stderr, os.strerror(28)])


@functools.cache
def is_in_torch(piece: str) -> bool:
    """Say whether torch's libraries hold a piece of a message; those of CUDA are not there in a build for CPUs."""
    import torch

    libraries = Path(torch.__path__[0]) / "lib"
    for library in [*libraries.glob("libtorch_cpu*"), *libraries.glob("libc10*"), *libraries.glob("*.dylib")]:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(piece.encode()) >= 0:
                return True
    return False


def is_from_cuda(piece: str) -> bool:
    return any(word in piece for word in ("CUDA", "NVIDIA")) and importlib.util.find_spec("nvidia") is None


@pytest.mark.parametrize("message", messages(DOCS / "troubleshooting.md"))
def test_every_message_occurs_in_the_code(message):
    pieces = [piece.strip(" :;,") for piece in message.split("...")]
    pieces = [piece for piece in pieces if len(piece) >= SHORTEST]
    assert pieces, "there is nothing to search for"
    for piece in pieces:
        piece = piece.removeprefix("unimrseg: ")
        assert piece in corpus() or is_in_torch(piece) or is_from_cuda(piece), f"no message of the code holds {piece!r}"


def test_every_symptom_has_message_cause_and_remedy():
    text = read(DOCS / "troubleshooting.md")
    symptoms = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(symptoms) >= 25
    for symptom in symptoms:
        title = symptom.splitlines()[0]
        assert symptom.count("```message") >= 1, title
        assert symptom.count("**Cause.**") == symptom.count("**Remedy.**") == 1, title


# --- the site


def test_the_site_is_built_without_a_warning(tmp_path):
    missing = [module for module in ("mkdocs", "material", "mkdocstrings", "latex2mathml") if not installed(module)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (pip install '.[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING -" not in result.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) == len(PAGES) + 1  # 404.html
    for page in pages:
        text = read(page)
        assert not re.search(r'(src|href)="https?://[^"]+\.(js|css|woff2?)"', text), f"{page.name} loads from elsewhere"
        assert "\\frac" not in text and "\\mathrm" not in text, f"{page.name} has an equation that was not converted"


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


# --- commands that run
