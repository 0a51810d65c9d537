"""What the accuracy benchmark trains: a run is a chain of trainings, each nnU-Net's loop, seeded, of a given budget."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

DONE = "benchmark.json"


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        dataset, plans, configuration, fold: as nnU-Net's names.
        seed: of weights, patches and augmentation.
        passes: patches that pass forward and backward in this training.
        epochs: how many epochs they are divided into.
        section: of the configuration, which names the trainer.
        settings: of all sections so far, each with all its fields.
        previous: the training whose weights this one starts from.
    """

    dataset: str
    plans: str
    configuration: str
    fold: int
    seed: int
    passes: int
    epochs: int
    section: str
    settings: Mapping[str, Mapping[str, Any]]
    previous: Task | None = None

    @property
    def name(self) -> str:
        """A name that is equal exactly where everything about the training is equal."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.section}_fold{self.fold}_seed{self.seed}_{digest[:12]}"

    def model_folder(self, output: Path) -> Path:
        """Return the folder of the trained model."""
        from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

        model = f"{TRAINER_OF_SECTION[self.section]}__{self.plans}__{self.configuration}"
        return output / "trainings" / self.name / self.dataset / model

    def is_done(self, output: Path) -> bool:
        """Say whether the training has finished."""
        return (self.model_folder(output) / f"fold_{self.fold}" / DONE).is_file()


@dataclass(frozen=True)
class Run:
    """One variant on one fold with one seed; `chain` are its trainings in order."""

    variant: str
    budget: int
    chain: tuple[Task, ...]

    def result(self, output: Path) -> Path:
        """Return the run's one result file."""
        last = self.chain[-1]
        setting = f"{last.dataset}__{last.plans}__{last.configuration}__passes{self.budget}"
        return output / "results" / f"{setting}__{self.variant}__fold{last.fold}__seed{last.seed}.json"


def planned_steps(task: Task) -> tuple[int, float]:
    """Return the steps of an epoch of the training, and the passes over a patch that a step costs on average."""
    from nnunetv2_unimrseg.config import UniMRSegConfig
    from nnunetv2_unimrseg.method.step_cost import passes_per_sample
    from nnunetv2_unimrseg.modalities import Modalities
    from nnunetv2_unimrseg.nnunet.paths import inherited_value, nnunet_folder, read_plans
    from nnunetv2_unimrseg.utils.files import read_json

    dataset_json = read_json(nnunet_folder("nnUNet_preprocessed") / task.dataset / "dataset.json")
    settings = getattr(UniMRSegConfig.from_dict(task.settings), task.section)
    passes = passes_per_sample(
        replace(settings, num_epochs=task.epochs), len(Modalities.from_dataset_json(dataset_json))
    )
    passes_per_step = passes * inherited_value(read_plans(task.dataset, task.plans), task.configuration, "batch_size")
    return max(1, round(task.passes / passes_per_step / task.epochs)), passes_per_step


def planned_passes(task: Task) -> float:
    """Return the passes that the training will take: `task.passes` but for whole steps in every epoch."""
    steps, passes_per_step = planned_steps(task)
    return task.epochs * steps * passes_per_step


def train(task: Task, output: Path, device: str, threads: int) -> None:
    """Train one task; an interrupted one goes on from nnU-Net's last checkpoint.

    The end is recorded in `benchmark.json` beside the checkpoint: seconds, steps and passes.
    """
    os.environ.update(nnUNet_results=str(output / "trainings" / task.name))
    if device == "cpu":  # no processes that augment, so that a run takes the threads it was given
        os.environ.update(nnUNet_n_proc_DA="0")
    import numpy as np
    import torch

    from nnunetv2_unimrseg.method.step_cost import passes_per_sample
    from nnunetv2_unimrseg.utils.files import write_json

    torch.set_num_threads(threads)
    random.seed(task.seed)
    np.random.seed(task.seed)
    torch.manual_seed(task.seed)
    trainer = _trainer(task, output, torch.device(device))
    fold = task.model_folder(output) / f"fold_{task.fold}"
    for name in ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth"):
        if (fold / name).is_file():
            trainer.initialize()
            trainer.load_checkpoint(str(fold / name))
            break
    start, first_epoch = time.perf_counter(), trainer.current_epoch
    if first_epoch < trainer.num_epochs:
        trainer.run_training()
    steps = trainer.num_epochs * trainer.num_iterations_per_epoch
    samples = steps * trainer.configuration_manager.batch_size
    record = {
        "seconds": time.perf_counter() - start,
        "epochs": trainer.num_epochs,
        "epochs_of_these_seconds": trainer.num_epochs - first_epoch,
        "steps": steps,
        "passes": samples * passes_per_sample(trainer.settings, len(trainer.modalities)),
    }
    write_json(fold / DONE, record)


def _trainer(task: Task, output: Path, device: Any) -> Any:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_unimrseg.config import PLANS_KEY
    from nnunetv2_unimrseg.nnunet.paths import nnunet_folder, read_plans
    from nnunetv2_unimrseg.nnunet.trained_model import findable_trainers
    from nnunetv2_unimrseg.stages import PREVIOUS_STAGE, SCRATCH, TRAINER_OF_SECTION
    from nnunetv2_unimrseg.utils.files import read_json

    plans = read_plans(task.dataset, task.plans)
    dataset_json = read_json(nnunet_folder("nnUNet_preprocessed") / task.dataset / "dataset.json")
    own = {
        **task.settings[task.section],
        "num_epochs": task.epochs,
        "num_iterations_per_epoch": planned_steps(task)[0],
        "num_val_iterations_per_epoch": 2,
    }
    if task.previous is None and task.section in PREVIOUS_STAGE:
        own["start_from"] = SCRATCH
    if task.previous is not None:
        folder = task.previous.model_folder(output) / f"fold_{task.fold}"
        own["start_from"] = str((folder / "checkpoint_final.pth").resolve())
    plans["configurations"][task.configuration][PLANS_KEY] = {**task.settings, task.section: own}
    plans["continue_training"] = False
    with findable_trainers():
        trainer_class = recursive_find_trainer_class_by_name(TRAINER_OF_SECTION[task.section])
    trainer = trainer_class(plans, task.configuration, task.fold, dataset_json, device)
    # drawing the curves after every epoch takes longer than a short epoch does
    trainer.logger.plot_progress_png = lambda *_: None
    return trainer
