"""The documentation: links, commands, settings and messages on its pages are those of the code; the tutorial runs."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import mmap
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docs_reference
import pytest
from conftest import CONFIGURATION, PLANS, SECTIONS, Workspace

import nnunetv2_unimrseg
from nnunetv2_unimrseg.cli.main import COMMANDS, _module, _parser_of
from nnunetv2_unimrseg.config import UniMRSegConfig

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PLACES = ("scripts", "tests", "docs", "nnunetv2_unimrseg", "trainers", "planners")
NOT_OURS = ("git ", "pip ", "python ", "cp ", "mkdir ", "export ")
"""Commands of the shell and of others."""

EXECUTABLE = re.compile(r"\b(unimrseg|nnUNetv2_\w+)\b")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", read(page), re.MULTILINE | re.DOTALL)


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
def parser_of(command: str, subcommand: str) -> argparse.ArgumentParser:
    """Return the real parser: of nnU-Net's commands, the one that they are about to use."""
    if command == "unimrseg":
        assert subcommand in COMMANDS, f"there is no command unimrseg {subcommand}"
        return _parser_of(subcommand, _module(subcommand))
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
    parser = parser_of(words[0], words[1] if own else "")
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
    return {f"{one} {two}".strip(): set(parser_of(one, two)._option_string_actions) for one, two in commands}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_flag_in_the_text_exists(page):
    known = options()
    every = {flag for flags in known.values() for flag in flags} | {"--strict", "--check", "--shm-size"}
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


# --- messages


PLACEHOLDER = "\0"
SHORTEST = 8
"""Letters of a piece of a message that is looked for."""


def strings_of(source: str) -> Iterator[str]:
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
    found = [squeezed(text) for file in files for text in strings_of(read(file))]
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


def of_cuda(piece: str) -> bool:
    return any(word in piece for word in ("CUDA", "NVIDIA")) and importlib.util.find_spec("nvidia") is None


MESSAGES = [squeezed(block) for block in blocks(DOCS / "troubleshooting.md", "message")]


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_occurs_in_the_code(message):
    pieces = [piece.strip(" :;,") for piece in message.split("...")]
    pieces = [piece for piece in pieces if len(piece) >= SHORTEST]
    assert pieces, "there is nothing to search for"
    for piece in pieces:
        piece = piece.removeprefix("unimrseg: ")
        assert piece in corpus() or is_in_torch(piece) or of_cuda(piece), f"no message of the code holds {piece!r}"


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


SMALLER = {
    "unimrseg plan": " -gpu_memory_target 1 --base-features 8 -np 1",
    "unimrseg train": " -device cpu",
    "unimrseg predict": " -device cpu -npp 0 -nps 0 --disable_tta",
    "unimrseg evaluate": " -device cpu --disable_tta --subsets single complete FLAIR+T1",
    "unimrseg reconstruct": " -device cpu --disable_tta",
    "nnUNetv2_predict": " -device cpu -npp 0 -nps 0 --disable_tta",
}
"""What is added so that a command takes seconds, on any machine."""

BUDGET = " ".join(
    f"{section}.num_epochs=1 {section}.num_iterations_per_epoch=1 {section}.num_val_iterations_per_epoch=1"
    for section in SECTIONS
)

IN_ONE_PROCESS = """
import json, sys
from nnunetv2_unimrseg.cli.main import main
for command in json.loads(sys.argv[1]):
    print("$", *command, flush=True)
    code = main(command[1:])
    if code:
        sys.exit(code)
"""


def smaller(command: str) -> str:
    return command + next((more for start, more in SMALLER.items() if command.startswith(start)), "")


def write_patients(made: Workspace, folder: Path) -> None:
    """Write the phantom as the tutorial's scans lie on disk: some to train with (one lacks a scan), one new."""
    from nnunetv2_unimrseg.data.phantom import write_phantom_dataset

    phantom = folder / "phantom"
    write_phantom_dataset(phantom, num_training=6, num_unseen=1, shape=(24, 24, 24), seed=7)
    endings = {"0000": "t2f", "0001": "t1n", "0002": "t1c", "0003": "t2w"}
    for split, place in (("Tr", "BraTS"), ("Ts", "NewPatients")):
        for scan in sorted((phantom / f"images{split}").glob("*.nii.gz")):
            case, number = scan.name.removesuffix(".nii.gz").rsplit("_", 1)
            patient = f"BraTS-GLI-{case[-3:]}00-000"
            (folder / place / patient).mkdir(parents=True, exist_ok=True)
            shutil.copy(scan, folder / place / patient / f"{patient}-{endings[number]}.nii.gz")
            label = phantom / f"labels{split}" / f"{case}.nii.gz"
            shutil.copy(label, folder / place / patient / f"{patient}-seg.nii.gz")
    incomplete = max((folder / "BraTS").iterdir())
    (incomplete / f"{incomplete.name}-t1c.nii.gz").unlink()
    (new,) = (folder / "NewPatients").iterdir()
    for ending in ("t1c", "t2w", "t2f"):
        (new / f"{new.name}-{ending}.nii.gz").unlink()


@pytest.mark.integration
def test_the_tutorial_runs(tmp_path):
    made = Workspace(tmp_path, dataset=600, dataset_name="Dataset600_BrainTumour")
    for folder in (made.raw, made.preprocessed, made.results):
        folder.mkdir()
    write_patients(made, tmp_path)
    page = DOCS / "tutorial.md"
    scripts = [block for block in blocks(page, "python") if block.startswith('"""')]
    names = re.findall(r"Save this script as `(\w+\.py)`", read(page))
    assert len(scripts) == len(names) == 2
    for file, script in zip(names, scripts, strict=True):
        (tmp_path / file).write_text(script)
    commands = [line for block in blocks(page, "bash") for line in block.strip().splitlines()]
    planned = next(number for number, command in enumerate(commands) if command.startswith("unimrseg plan")) + 1
    lines = [smaller(command) for command in commands]
    lines.insert(planned, f"unimrseg configure -d 600 -c {CONFIGURATION} -p {PLANS} --set {BUDGET}")
    result = made.run("bash", "-c", "\n".join(["set -euo pipefail", f"cd {tmp_path}", *lines]), nnUNet_n_proc_DA="0")
    assert "is left out, it lacks" in result.stdout
    assert json.loads((made.raw / made.dataset_name / "dataset.json").read_text())["numTraining"] == 5
    assert len(list((tmp_path / "SEGMENTATIONS").glob("*.nii.gz"))) == 1
    (case,) = json.loads((tmp_path / "SEGMENTATIONS" / "modalities.json").read_text()).values()
    assert case == {"available": ["T1"], "missing": ["FLAIR", "T1ce", "T2"]}
    assert (tmp_path / "EVALUATION" / "report.html").is_file() and (
        tmp_path / "SEGMENTATIONS" / "report.html"
    ).is_file()
    expected = json.loads((tmp_path / "SEGMENTATIONS" / "report.json").read_text())["cases"]
    assert all(entry["expected_dice"] for entry in expected.values())


TRAINED = ("predict", "evaluate-and-compare", "reconstruct", "share-a-model", "clusters-and-parts")
"""How-to pages whose commands need a trained model, in the order in which they are run."""


@pytest.mark.integration
def test_the_how_to_pages_and_python_examples_run(workspace, tmp_path):
    """With the session's model: all commands of `TRAINED` but trainings, then every example in Python."""
    raw = workspace.raw / workspace.dataset_name
    patients, images, labels = tmp_path / "PATIENTS", tmp_path / "IMAGES", tmp_path / "LABELS"
    shutil.copytree(raw / "imagesTs", patients)
    shutil.copytree(raw / "imagesTs", images)
    shutil.copytree(raw / "labelsTs", labels)
    for case in sorted({file.name[:-12] for file in patients.iterdir()})[1:]:
        for file in patients.glob(f"{case}_*"):
            file.unlink()
    min(patients.glob("*_0002.nii.gz")).unlink()
    own: list[list[str]] = []
    stock: list[str] = []
    for page in (DOCS / "how-to" / f"{each}.md" for each in TRAINED):
        for block in blocks(page, "bash"):
            for words in shell_commands(block):
                line = smaller(shlex.join(words)).replace("-d 900", f"-d {workspace.dataset}")
                line = line.replace("MODEL_FOLDER", str(workspace.model_folder("UniMRSegStage3Trainer")))
                if words[:2] in (["unimrseg", "train"], ["unimrseg", "env"]):
                    continue
                if words[0] == "unimrseg":
                    own += [shlex.split(line)]
                else:
                    stock.append(line)
    assert len(own) >= 12 and len(stock) == 3
    parts = [number for number, words in enumerate(own) if "-num_parts" in words]
    for number in reversed(parts):  # the variable of the loop was taken for 0
        second = list(own[number])
        second[second.index("-part_id") + 1] = "1"
        own.insert(number + 1, second)
    run = [str(part) for part in (sys.executable, "-c", IN_ONE_PROCESS, json.dumps(own))]
    made = workspace.run("bash", "-c", f"cd {tmp_path} && {shlex.join(run)}")
    assert made.stdout.count("$ unimrseg") == len(own)
    workspace.run("bash", "-c", "\n".join(["set -euo pipefail", f"cd {tmp_path}", *stock]))
    for folder in ("EVALUATION", "EVALUATION_OF_CONTROL", "EVALUATION_OF_OTHERS", "EVALUATION_IN_PARTS", "COMPARISON"):
        assert (tmp_path / folder / "report.html").is_file(), folder
    assert same_segmentations(tmp_path / "SEGMENTATIONS", tmp_path / "SEGMENTATIONS_OF_NNUNET")
    assert (tmp_path / "model.zip").is_file()

    flair, t1 = (min(patients.glob(f"*_{number}.nii.gz")) for number in ("0000", "0001"))
    given = {
        "MODEL_FOLDER": workspace.model_folder("UniMRSegStage3Trainer"),
        "STAGE_1_FOLDER": workspace.model_folder("UniMRSegStage1Trainer"),
        "T1_FILE": t1,
        "FLAIR_FILE": flair,
    }
    examples = blocks(DOCS / "how-to" / "python.md", "python")
    assert len(examples) == 6
    start = "".join(f"{variable} = {str(value)!r}\n" for variable, value in given.items())
    (tmp_path / "example.py").write_text(start + "\n".join(examples))
    result = workspace.run("bash", "-c", f"cd {tmp_path} && {shlex.quote(sys.executable)} example.py")
    assert "holds no finished evaluation" in result.stdout
    for file in ("EVALUATION_FROM_PYTHON/report.html", "COMPARISON_FROM_PYTHON/report.html"):
        assert (tmp_path / file).is_file(), file


def same_segmentations(first: Path, second: Path) -> bool:
    import SimpleITK as sitk

    files = sorted(file.name for file in first.glob("*.nii.gz"))
    assert files == sorted(file.name for file in second.glob("*.nii.gz")) and files
    return all(
        (
            sitk.GetArrayFromImage(sitk.ReadImage(str(first / file)))
            == sitk.GetArrayFromImage(sitk.ReadImage(str(second / file)))
        ).all()
        for file in files
    )
