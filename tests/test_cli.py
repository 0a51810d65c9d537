"""The `unimrseg` command: exit codes, one message for a user's error, configure, info, train."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import PLANNED_DATASET

from nnunetv2_unimrseg.cli.configure import changed
from nnunetv2_unimrseg.cli.main import COMMANDS, main
from nnunetv2_unimrseg.config import Stage1Config
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION


def refused(capsys, *arguments: str) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_unknown_commands_name_the_nearest(capsys):
    assert "Did you mean 'predict'?" in refused(capsys, "predikt")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit_code:
        main([command, "-h"])
    assert exit_code.value.code == 0
    assert "usage: unimrseg" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "-d", "1"), ("configure", "-d", "1", "-c", "3d_fullres"), ("train", "1", "3d_fullres", "0"),
        ("predict", "-i", ".", "-o", "out", "-d", "1", "-c", "3d_fullres"), ("demo",),
    ],
)  # fmt: skip
def test_unset_folders_are_one_error(capsys, monkeypatch, arguments):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    message = refused(capsys, *arguments)
    assert "not set" in message
    assert "export nnUNet_" in message


def test_configure_sets_shows_and_unsets(planned, capsys):
    before = json.loads(planned.read_text())
    common = ("configure", "-d", "7", "-c", "3d_fullres")
    assert main([*common, "--set", "stage1.num_epochs=5", "stage3.subsets_per_step=all", "stage2.start_from="]) == 0
    written = json.loads(planned.read_text())
    assert list(written) == list(before)
    settings = written["configurations"]["3d_fullres"].pop("unimrseg")
    assert settings == {
        "stage1": {"num_epochs": 5}, "stage3": {"subsets_per_step": "all"}, "stage2": {"start_from": ""},
    }  # fmt: skip
    assert written == before
    capsys.readouterr()
    assert main(common) == 0
    shown = capsys.readouterr().out
    assert "* stage1.num_epochs = 5" in shown
    assert "  stage1.mask_ratio = 0.25   (from 0.0 to 0.95)" in shown
    assert main([*common, "--unset", "stage1.num_epochs"]) == 0
    capsys.readouterr()
    assert main([*common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage1"]["num_epochs"] == Stage1Config().num_epochs


def test_configure_writes_nothing_when_anything_is_wrong(planned, capsys):
    before = planned.read_text()
    message = refused(
        capsys, "configure", "-d", "7", "-c", "3d_fullres", "--set", "stage1.num_epochs=5", "stage1.mask_ratoi=0.1",
        "stage2.temperature=0",
    )  # fmt: skip
    assert "Did you mean 'mask_ratio'?" in message
    assert "stage2.temperature = 0" in message
    assert planned.read_text() == before
    assert "Cannot read 'stage1'" in refused(capsys, "configure", "-d", "7", "-c", "3d_fullres", "--set", "stage1")
    assert "unknown key 'stage1.x'" in refused(
        capsys, "configure", "-d", "7", "-c", "3d_fullres", "--unset", "stage1.x"
    )


def test_configure_can_mend_wrong_values(planned, capsys):
    plans = json.loads(planned.read_text())
    plans["configurations"]["3d_fullres"]["unimrseg"] = {"stage1": {"mask_ratio": 7}}
    planned.write_text(json.dumps(plans))
    refused(capsys, "configure", "-d", "7", "-c", "3d_fullres")
    assert main(["configure", "-d", "7", "-c", "3d_fullres", "--set", "stage1.mask_ratio=0.5"]) == 0


def test_wrong_dataset_plans_and_configuration_name_the_nearest(planned, capsys):
    assert "DATASET" in refused(capsys, "configure", "-d", "8", "-c", "3d_fullres").upper()
    message = refused(capsys, "configure", "-d", "7", "-c", "3d_fulres")
    assert "Did you mean '3d_fullres'?" in message
    message = refused(capsys, "configure", "-d", "7", "-c", "3d_fullres", "-p", "nnUNetPlan")
    assert "Did you mean 'nnUNetPlans'?" in message


def test_changed_leaves_its_input_alone():
    current = {"stage1": {"num_epochs": 3}}
    assert changed(current, ["stage1.num_epochs=4"], []) == {"stage1": {"num_epochs": 4}}
    assert changed(current, [], ["stage1.num_epochs"]) == {}
    assert current == {"stage1": {"num_epochs": 3}}
    with pytest.raises(UserError, match="cpu_precision"):
        changed(current, ["stage1.cpu_precision=half"], [])


def test_info_creates_nothing_and_tells_what_is_trained(planned, capsys):
    results = planned.parents[2] / "nnUNet_results"
    fold = results / PLANNED_DATASET / f"{TRAINER_OF_SECTION['stage1']}__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_best.pth").touch()
    before = sorted(results.rglob("*"))
    assert main(["info", "-d", "7", "-c", "3d_fullres", "-f", "0", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["trained"]["stage1"] == {"0": "in progress"}
    assert facts["model"]["trained"]["stage2"] == {"0": "no"}
    assert facts["model"]["settings"]["stage1"]["num_epochs"] == Stage1Config().num_epochs
    assert set(facts["trainers_found"]) == set(TRAINER_OF_SECTION.values())
    assert main(["info", "-d", "7", "-c", "3d_fullres", "-f", "0"]) == 0
    assert "in progress" in capsys.readouterr().out
    assert sorted(results.rglob("*")) == before


def test_train_checks_before_it_starts(planned, capsys):
    said = refused(capsys, "train", "7", "3d_fullres", "0", "-device", "cpu")
    assert "not preprocessed" in said
    assert "Run: unimrseg plan -d 7 -overwrite_plans_name nnUNetPlans -c 3d_fullres --preprocess-only" in said
    assert "must be a number" in refused(capsys, "train", "7", "3d_fullres", "first", "-device", "cpu")
    assert not list((planned.parents[2] / "nnUNet_results").iterdir())


def test_settings_of_a_configuration_that_inherits_are_its_own(planned, capsys):
    plans = json.loads(planned.read_text())
    parent = {"stage1": {"num_epochs": 3, "save_every": 2}}
    plans["configurations"]["3d_fullres"]["unimrseg"] = parent
    plans["configurations"]["3d_bs4"] = {"inherits_from": "3d_fullres", "batch_size": 4}
    planned.write_text(json.dumps(plans))

    def own() -> dict:
        written = json.loads(planned.read_text())["configurations"]
        assert written["3d_fullres"]["unimrseg"] == parent
        return written["3d_bs4"]["unimrseg"]

    common = ("configure", "-d", "7", "-c", "3d_bs4")
    assert main([*common, "--set", "stage1.num_epochs=4"]) == 0
    assert own() == {"stage1": {"num_epochs": 4, "save_every": 2}}
    assert main([*common, "--unset", "stage1.num_epochs", "stage1.save_every"]) == 0
    assert own() == {}
    capsys.readouterr()
    assert main([*common, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stage1"]["num_epochs"] == Stage1Config().num_epochs


def test_unsetting_everything_leaves_the_plans_as_they_were(planned, capsys):
    before = json.loads(planned.read_text())
    common = ("configure", "-d", "7", "-c", "3d_fullres")
    assert main([*common, "--set", "stage1.num_epochs=4"]) == 0
    assert main([*common, "--unset", "stage1.num_epochs"]) == 0
    assert json.loads(planned.read_text()) == before
    assert [file.name for file in planned.parent.iterdir() if file.name.startswith(".")] == []


def test_values_are_text_where_text_is_meant_and_finite():
    assert changed({}, ["stage2.start_from=123"], []) == {"stage2": {"start_from": "123"}}
    for value in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(UserError, match="must be a number"):
            changed({}, [f"stage1.initial_lr={value}"], [])


def test_info_refuses_what_is_no_fold(planned, capsys):
    assert main(["info", "-d", "7", "-c", "3d_fullres", "-f", "0", "last"]) == 2
    assert "'last'" in capsys.readouterr().err


def test_info_reports_a_broken_module_beside_the_trainers(planned, capsys, monkeypatch, tmp_path):
    (tmp_path / "extension").mkdir()
    (tmp_path / "extension" / "broken_for_a_test.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "extension"))
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "no_such_module_anywhere" in shown
    assert "UniMRSegStage1Trainer: no" in shown
    assert 'eval "$(unimrseg env)"' in shown


@pytest.mark.integration
def test_train_runs_what_is_missing_and_skips_the_rest(workspace):
    for trainer in list(TRAINER_OF_SECTION.values())[:3]:
        shutil.rmtree(workspace.model_folder(trainer) / "fold_1", ignore_errors=True)
    common = (workspace.dataset, workspace.configuration, 1, "-p", workspace.plans, "-device", "cpu")
    first = workspace.run("unimrseg", "train", *common, nnUNet_n_proc_DA="0", nnUNet_extTrainer="")
    for trainer in list(TRAINER_OF_SECTION.values())[:3]:
        fold = workspace.model_folder(trainer) / "fold_1"
        assert (fold / "validation" / "summary.json").is_file()
        assert f"-tr {trainer}" in first.stdout
    stamp = (fold / "checkpoint_final.pth").stat().st_mtime_ns
    (fold / "validation" / "summary.json").unlink()
    second = workspace.run("unimrseg", "train", *common, nnUNet_n_proc_DA="0")
    assert "stage1 is finished already" in second.stdout
    assert "stage2 is finished already" in second.stdout
    assert "--val" in second.stdout
    assert (fold / "validation" / "summary.json").is_file()
    assert (fold / "checkpoint_final.pth").stat().st_mtime_ns == stamp


@pytest.mark.integration
def test_a_stage_that_the_user_must_mend_ends_the_run_with_its_message(workspace):
    fold = workspace.model_folder(TRAINER_OF_SECTION["stage1"]) / "fold_2"
    fold.mkdir(exist_ok=True)
    kept = (fold / "checkpoint_final.pth").read_bytes() if (fold / "checkpoint_final.pth").exists() else None
    (fold / "checkpoint_final.pth").write_bytes(b"broken")
    result = workspace.run(
        "unimrseg", "train", workspace.dataset, workspace.configuration, 2, "-p", workspace.plans, "-device", "cpu",
        check=False,
    )  # fmt: skip
    if kept is None:
        (fold / "checkpoint_final.pth").unlink()
    else:
        (fold / "checkpoint_final.pth").write_bytes(kept)
    assert result.returncode == 2
    assert f"unimrseg: error: The training in {fold} cannot be continued: none of its checkpoints" in result.stderr
    assert "the same command" not in result.stderr and "Traceback" not in result.stderr


def test_configure_lists_malformed_unknown_and_wrong_values_in_one_error(planned, capsys):
    before = planned.read_text()
    message = refused(
        capsys, "configure", "-d", "7", "-c", "3d_fullres", "--set", "nonsense", "stage2.temperature=0", "--set",
        "stage1.mask_ratoi=1", "--unset", "stage3.num_epohcs", "stage9.x",
    )  # fmt: skip
    for expected in (
        "Cannot read 'nonsense'", "stage2.temperature = 0", "'stage1.mask_ratoi'", "'stage3.num_epohcs'", "'stage9'"
    ):  # fmt: skip
        assert expected in message
    assert planned.read_text() == before


def test_set_given_twice_sets_both(planned, capsys):
    common = ("configure", "-d", "7", "-c", "3d_fullres")
    assert main([*common, "--set", "stage1.num_epochs=5", "--set", "stage2.num_epochs=6", "--json"]) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out)
    assert (shown["stage1"]["num_epochs"], shown["stage2"]["num_epochs"]) == (5, 6)
    assert "Wrote" in captured.err


def test_unset_removes_an_unknown_name_that_is_in_the_plans():
    assert changed({"stage1": {"mask_ratoi": 1, "num_epochs": 2}}, [], ["stage1.mask_ratoi"]) == {
        "stage1": {"num_epochs": 2}
    }


@pytest.mark.parametrize("settings", [5, [1], {"stage1": 5}])
def test_settings_that_are_no_objects_are_an_error(settings):
    with pytest.raises(UserError, match="must be an object"):
        changed(settings, ["stage1.num_epochs=4"], [])


def test_configure_says_that_trained_models_keep_their_values(planned, capsys):
    folder = planned.parents[2] / "nnUNet_results" / PLANNED_DATASET
    model = folder / f"{TRAINER_OF_SECTION['stage2']}__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    (model / "plans.json").write_text("{}")
    assert main(["configure", "-d", "7", "-c", "3d_fullres", "--set", "stage2.num_epochs=5"]) == 0
    shown = capsys.readouterr().out
    assert f"{model.name} has been trained already" in shown
    assert TRAINER_OF_SECTION["stage1"] not in shown


def test_plans_that_cannot_be_written_are_one_error(planned, capsys, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    before = planned.read_text()
    monkeypatch.setattr("os.replace", refuse)
    message = refused(capsys, "configure", "-d", "7", "-c", "3d_fullres", "--set", "stage1.num_epochs=5")
    assert "Permission denied. What was there before is unchanged." in message
    assert planned.read_text() == before
    assert not list(planned.parent.glob(".*"))
