"""Installation and discovery: what nnU-Net and pip need."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunetv2_unimrseg
from nnunetv2_unimrseg.cli.env import LINES, environment_line
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


def test_wheel_holds_trainers_planners_and_the_shim(tmp_path):
    pytest.importorskip("setuptools")
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True) if (ROOT / ".git").exists() else None
    if not source.exists():
        pytest.skip("needs the git repository, so that the build leaves no files in it")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(source),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for module in ("trainers/stage3.py", "planners/planner.py", "nnunet_ext/unimrseg_trainers.py", "cli/main.py"):
        assert f"nnunetv2_unimrseg/{module}" in names
    assert not any(name.startswith(("tests/", "trainers/", "planners/", "scripts/")) for name in names)
    assert nnunetv2_unimrseg.__version__ in wheel.name


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
