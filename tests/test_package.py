"""Installation and discovery: what nnU-Net and pip need."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from evaluations import made_up
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunetv2_unimrseg
from nnunetv2_unimrseg.cli.env import LINES, environment_line
from nnunetv2_unimrseg.evaluation.files import write_evaluation
from nnunetv2_unimrseg.nnunet.discovery import append_extension_folder, extension_folder
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", TRAINER_OF_SECTION.values())
def test_nnunet_finds_the_same_class_each_time(monkeypatch, name):
    monkeypatch.setenv("nnUNet_extTrainer", str(extension_folder()))
    first, second = recursive_find_trainer_class_by_name(name), recursive_find_trainer_class_by_name(name)
    assert first is second
    assert first.__module__.startswith("nnunetv2_unimrseg.trainers.")
    assert pickle.loads(pickle.dumps(first)) is first


def test_importing_the_package_is_light():
    code = "import sys, nnunetv2_unimrseg, nnunetv2_unimrseg.cli.main; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_unimrseg_env_appends_once(tmp_path):
    other = tmp_path / "folder with 'quotes' and spaces"
    code = "import sys; from nnunetv2_unimrseg.cli.main import main; sys.exit(main(['env']))"
    script = 'line="$("$1" -c "$2")"; eval "$line"; eval "$line"; printf %s "$nnUNet_extTrainer"'
    for before in (None, str(other)):
        environment = {key: value for key, value in os.environ.items() if key != "nnUNet_extTrainer"}
        if before:
            environment["nnUNet_extTrainer"] = before
        result = subprocess.run(
            ["bash", "-c", script, "bash", sys.executable, code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            result.stdout
            == append_extension_folder(before)
            == os.pathsep.join([*([before] if before else []), str(extension_folder())])
        )


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh", "fish"])
def test_the_line_of_a_shell_keeps_odd_folders_whole(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder = "/a 'quoted' \"folder\" with $HOME `x` \\ and *"
    line = environment_line("bash" if shell == "sh" else shell, folder, ":")
    script = f'{line}\n{line}\nprintf %s "$nnUNet_extTrainer"'
    for before, after in (("", folder), ("/b:/c d", f"/b:/c d:{folder}"), (f"{folder}:/b", f"{folder}:/b")):
        environment = {**os.environ, "nnUNet_extTrainer": before}
        result = subprocess.run([shell, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert result.stdout == after


def test_the_lines_of_other_shells_quote_the_folder():
    assert "'it\\'s'" in environment_line("fish", "it's", ":")
    assert "'it''s'" in environment_line("powershell", "it's", ";")
    assert all("\n" not in environment_line(shell, "/a", ":") for shell in LINES)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The package, built from a clone, so that the build leaves no files in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    if not (ROOT / ".git").exists():
        pytest.skip("needs the git repository")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "source")], check=True)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(folder / "source")], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_trainers_planners_and_the_shim(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for module in ("trainers/stage3.py", "planners/planner.py", "nnunet_ext/unimrseg_trainers.py", "cli/main.py"):
        assert f"nnunetv2_unimrseg/{module}" in names
    assert not any(name.startswith(("tests/", "trainers/", "planners/", "scripts/")) for name in names)
    assert nnunetv2_unimrseg.__version__ in wheel.name


@pytest.mark.integration
def test_a_report_is_rendered_from_the_wheel_in_a_clean_environment(wheel, tmp_path):
    """The environment has the dependencies of this one, but neither this project nor its repository."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True).stdout.strip())
    # the .pth files in a folder that is added by a .pth file, as that of this project, have no effect
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--ignore-installed"]
    subprocess.run([*pip, str(wheel)], check=True)
    folders = [str(tmp_path / name) for name in ("one", "other")]
    for folder, better in zip(folders, (0.0, 0.05), strict=True):
        write_evaluation(made_up(better=better), Path(folder))
    command = [str(python.parent / "unimrseg"), "compare", *folders, "-o", str(tmp_path / "compared")]
    subprocess.run(command, cwd=tmp_path, check=True)
    page = (tmp_path / "compared" / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "data:image/" in page
    where = "import nnunetv2_unimrseg, nnunetv2_unimrseg.trainers as t; print(nnunetv2_unimrseg.__file__, t.__file__)"
    told = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert all(Path(file).is_relative_to(packages) for file in told.split()), told


def test_every_public_name_is_imported_when_it_is_used_and_torch_is_not_before():
    code = (
        "import sys, nnunetv2_unimrseg as package; assert 'torch' not in sys.modules; "
        "assert set(package.__all__) <= set(dir(package)); "
        "found = [getattr(package, name) for name in package.__all__]; "
        "assert all(one.__module__.startswith('nnunetv2_unimrseg.') for one in found); "
        "assert [one.__name__ for one in found] == package.__all__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(nnunetv2_unimrseg._MODULES) == set(nnunetv2_unimrseg.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        nnunetv2_unimrseg.evaluat  # noqa: B018
