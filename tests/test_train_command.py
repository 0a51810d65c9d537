"""`unimrseg train`: what it checks first, the trainings it starts, and the SLURM jobs it plans."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import PLANNED_DATASET
from test_cli import refused

from nnunetv2_unimrseg.cli.main import main
from nnunetv2_unimrseg.cli.train import needed_stages
from nnunetv2_unimrseg.config import UniMRSegConfig
from nnunetv2_unimrseg.nnunet.discovery import extension_folder
from nnunetv2_unimrseg.nnunet.training_process import code_that_runs
from nnunetv2_unimrseg.stages import STAGES, TRAINER_OF_SECTION


def test_stages_before_a_given_checkpoint_are_not_needed():
    assert needed_stages(UniMRSegConfig()) == ("stage1", "stage2", "stage3")
    assert needed_stages(UniMRSegConfig.from_dict({"stage2": {"start_from": "a.pth"}})) == ("stage2", "stage3")
    both = {"stage2": {"start_from": "a.pth"}, "stage3": {"start_from": "b.pth"}}
    assert needed_stages(UniMRSegConfig.from_dict(both)) == ("stage3",)


def test_a_stage_that_starts_from_scratch_needs_no_checkpoint(preprocessed, commands):
    plans = json.loads(preprocessed.read_text())
    plans["configurations"]["3d_fullres"]["unimrseg"] = {"stage2": {"start_from": "scratch"}}
    preprocessed.write_text(json.dumps(plans))
    assert main(["train", "7", "3d_fullres", "all", "-device", "cpu"]) == 0
    trained = [words[words.index("-tr") + 1] for words, _ in commands]
    assert trained == [TRAINER_OF_SECTION["stage2"], TRAINER_OF_SECTION["stage3"]]


def test_train_tells_nnunet_what_each_stage_lacks(preprocessed, commands, capsys, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", "/another/folder")
    results = preprocessed.parents[2] / "nnUNet_results" / PLANNED_DATASET
    folds = [
        results / f"{TRAINER_OF_SECTION[stage]}__nnUNetPlans__3d_fullres" / "fold_all" for stage in ("stage1", "stage2")
    ]
    for fold, checkpoint in zip(folds, ("final", "latest"), strict=True):
        fold.mkdir(parents=True)
        torch.save({}, fold / f"checkpoint_{checkpoint}.pth")
    assert main(["train", "7", "3d_fullres", "all", "-device", "cpu"]) == 0
    words = [recorded for recorded, _ in commands]
    assert [entry[entry.index("-tr") + 1] for entry in words] == [
        TRAINER_OF_SECTION[stage] for stage in ("stage1", "stage2", "stage3")
    ]
    assert ["--val" in entry for entry in words] == [True, False, False]
    assert ["--c" in entry for entry in words] == [False, True, False]
    folders = commands[0][1]["nnUNet_extTrainer"].split(os.pathsep)
    assert folders == ["/another/folder", str(extension_folder())]


def test_train_takes_all_folds_one_after_another(preprocessed, commands, capsys):
    splits = [{"train": ["case"], "val": ["case"]}] * 5
    (preprocessed.parent / "splits_final.json").write_text(json.dumps(splits))
    assert main(["train", "7", "3d_fullres", "all-folds", "-device", "cpu"]) == 0
    trained = [(words[5], words[words.index("-tr") + 1]) for words, _ in commands]
    stages = [TRAINER_OF_SECTION[stage] for stage in STAGES]
    assert trained == [(str(fold), trainer) for fold in range(5) for trainer in stages]
    assert "unimrseg evaluate -d 7 -c 3d_fullres -p nnUNetPlans -f 0 1 2 3 4" in capsys.readouterr().out


def test_train_plans_a_slurm_job_for_each_stage_of_each_fold(preprocessed, commands, capsys):
    (preprocessed.parent / "splits_final.json").write_text("[]")
    options = ["--slurm-partition", "gpu", "--slurm-time", "2-12", "--slurm-option", "account=lab", "exclusive"]
    launcher = ["--launcher", "slurm", "--dry-run"]
    assert main(["train", "7", "3d_fullres", "all-folds", *launcher, *options]) == 0
    header, *jobs, resources = [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert header == ["job", "depends on", "command"] and not commands
    assert [job[:2] for job in jobs] == [
        [f"fold {fold}, stage{stage}", f"fold {fold}, stage{stage - 1}" if stage > 1 else "-"]
        for fold in range(5)
        for stage in (1, 2, 3)
    ]
    assert jobs[4][2].startswith(
        f"nnUNetv2_train {PLANNED_DATASET} 3d_fullres 1 -tr UniMRSegStage2Trainer -p nnUNetPlans"
    )
    assert resources[0].endswith("--time=3600 --partition=gpu --gpus-per-node=1 --account=lab --exclusive")


@pytest.mark.parametrize(
    ("flags", "settings", "message"),
    [
        (("-device", "cpu", "-num_gpus", "2"), {}, "needs -device cuda"),
        (("-device", "cuda", "-num_gpus", "99"), {}, "99 CUDA device(s)"),
        (("-device", "cpu", "-num_gpus", "0"), {}, "at least 1"),
        (("-device", "cpu", "--launcher", "torchrun"), {}, "RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        (("--launcher", "torchrun", "-num_gpus", "2"), {}, "--nproc-per-node says how many"),
        (("--launcher", "slurm", "--slurm-time", "soon"), {}, "must be a time such as 24:00:00"),
        (("--dry-run",), {}, "needs --launcher slurm"),
        (("-device", "cpu"), {"stage2": {"start_from": "/no/{fold}.pth"}}, "stage2.start_from names /no/0.pth"),
    ],
)  # fmt: skip
def test_train_refuses_before_the_first_stage(preprocessed, commands, capsys, flags, settings, message):
    plans = json.loads(preprocessed.read_text())
    plans["configurations"]["3d_fullres"]["unimrseg"] = settings
    preprocessed.write_text(json.dumps(plans))
    assert message in refused(capsys, "train", "7", "3d_fullres", "0", *flags)
    assert not commands


def test_training_imports_nothing_from_the_current_folder(tmp_path):
    (tmp_path / "nnunetv2.py").write_text("raise SystemExit(77)")
    code = code_that_runs("nnunetv2_unimrseg.nnunet.training_process")
    result = subprocess.run([sys.executable, "-c", code, "-h"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
