"""One training on two machines, which are two network namespaces of this one, started by torchrun."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import torch
from conftest import BIN, Workspace

from nnunetv2_unimrseg.stages import STAGES, TRAINER_OF_SECTION

pytestmark = pytest.mark.integration

FOLD = 3
MOST_S = 500


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """The names of two network namespaces that a cable joins, with the addresses 10.77.0.1 and 10.77.0.2."""
    if not shutil.which("ip"):
        pytest.skip("there is no ip command to make network namespaces with")
    names = ("unimrseg_a", "unimrseg_b")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                ip("netns", "add", name)
                stack.callback(ip, "netns", "delete", name)
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
            for number, name in enumerate(names, start=1):
                ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "cable")
                for interface in ("cable", "lo"):
                    ip("-n", name, "link", "set", interface, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr}")
        yield names


def start(workspace: Workspace, machine: str, number: int) -> subprocess.Popen[str]:
    words = ["ip", "netns", "exec", machine, BIN / "python", "-m", "torch.distributed.run"]
    words += ["--nnodes", 2, "--node-rank", number, "--nproc-per-node", 1]
    words += ["--master-addr", "10.77.0.1", "--master-port", 29500, "--no-python"]
    words += [BIN / "unimrseg", "train", workspace.dataset, workspace.configuration, FOLD, "-p", workspace.plans]
    words += ["-device", "cpu", "--launcher", "torchrun"]
    environment = {**workspace.env, "GLOO_SOCKET_IFNAME": "cable", "nnUNet_n_proc_DA": "0"}
    return subprocess.Popen(
        [str(word) for word in words], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_two_machines_train_the_three_stages_together(workspace, machines):
    processes = [start(workspace, machine, number) for number, machine in enumerate(machines)]
    try:
        outputs = [process.communicate(timeout=MOST_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    for number, output in enumerate(outputs, start=1):
        assert output.count(f"Process {number} of 2 trains on cpu.") == len(STAGES)
    assert "The three stages are trained." in outputs[0]
    assert "The three stages are trained." not in outputs[1]
    for stage in STAGES:
        folder = workspace.model_folder(TRAINER_OF_SECTION[stage]) / f"fold_{FOLD}"
        assert len(list(folder.glob("training_log_*.txt"))) == 1
        assert (folder / "validation" / "summary.json").is_file()
        checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
        assert not any(name.startswith("module.") for name in checkpoint["network_weights"])
