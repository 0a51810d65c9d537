"""The measurements of `cost.py`: time and memory of a training step, time of a prediction.

All of them take random patches, so plans and dataset.json are the only files needed. Networks and trainers are those
that nnU-Net would build from these plans, with random weights.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

WARM_UP = {"cpu": 1, "cuda": 3}
"""Rounds before those that count: cuDNN tries its algorithms, torch.compile compiles."""

PROMPT_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Makes glibc give freed memory back at once, so that resident memory is memory in use."""


@dataclass(frozen=True)
class Plans:
    """What nnU-Net's trainers are built from.

    Attributes:
        plans: content of the plans file.
        configuration: name of the configuration in them.
        dataset_json: content of dataset.json.
    """

    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]

    def managers(self) -> tuple[Any, Any]:
        """Return nnU-Net's managers of the plans and of the configuration."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(copy.deepcopy(self.plans))
        return manager, manager.get_configuration(self.configuration)

    @property
    def entries(self) -> dict[str, Any]:
        """The entries of the configuration, with those that it inherits."""
        return self.managers()[1].configuration

    @property
    def num_modalities(self) -> int:
        """Number of image channels."""
        return len(self.entries["normalization_schemes"])

    @property
    def patch_shape(self) -> tuple[int, ...]:
        """Shape of one patch, `(1, C, X, Y[, Z])`; a cascade's label channels are among the C."""
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        return 1, determine_num_input_channels(*self.managers(), self.dataset_json), *self.entries["patch_size"]

    def changed(self, **entries: Any) -> Plans:
        """Return plans with other entries of the configuration."""
        configurations = {**self.plans["configurations"], self.configuration: {**self.entries, **entries}}
        return replace(self, plans={**self.plans, "configurations": configurations})

    def with_modalities(self, number: int) -> Plans:
        """Return plans for that many image channels, otherwise the same."""
        names = {str(channel): f"modality {channel}" for channel in range(number)}
        changed = self.changed(
            normalization_schemes=["ZScoreNormalization"] * number, use_mask_for_norm=[False] * number
        )
        return replace(changed, dataset_json={**self.dataset_json, "channel_names": names})

    def with_settings(self, section: str, settings: Mapping[str, Any]) -> Plans:
        """Return plans with other settings of one section of this package's configuration (see `config.py`)."""
        from nnunetv2_unimrseg.config import PLANS_KEY

        sections = self.entries.get(PLANS_KEY, {})
        return self.changed(**{PLANS_KEY: {**sections, section: {**sections.get(section, {}), **settings}}})


@dataclass(frozen=True)
class Contender:
    """A trainer with settings.

    Attributes:
        section: of the configuration, which names the trainer; None is stock nnU-Net's.
        settings: of that section, over those of the plans.
    """

    section: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def passes(self, plans: Plans) -> float:
        """Return the forward-backward passes over a patch that a training step costs, on average."""
        from nnunetv2_unimrseg.config import UniMRSegConfig
        from nnunetv2_unimrseg.method.step_cost import passes_per_sample

        batch_size = plans.entries["batch_size"]
        if self.section is None:
            return batch_size
        own = plans.with_settings(self.section, self.settings)
        config = UniMRSegConfig.from_plans(own.plans, own.configuration)
        return batch_size * passes_per_sample(getattr(config, self.section), plans.num_modalities)


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def scratch_folders(plans: Plans) -> Iterator[None]:
    """Let nnU-Net's trainers write their output, and find a case's file, in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        cases = Path(folder) / plans.plans["dataset_name"] / plans.entries["data_identifier"]
        cases.mkdir(parents=True)
        (cases / "case.b2nd").touch()
        with environment(dict.fromkeys(("nnUNet_results", "nnUNet_preprocessed"), folder)):
            yield


def make_trainer(plans: Plans, contender: Contender, device: str) -> Any:
    """Return a trainer ready for training steps, with random weights. Call it inside `scratch_folders`."""
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunetv2_unimrseg.nnunet.trained_model import findable_trainers
    from nnunetv2_unimrseg.stages import TRAINER_OF_SECTION

    trainer_class = nnUNetTrainer
    with contextlib.redirect_stdout(io.StringIO()):
        if contender.section is not None:
            plans = plans.with_settings(contender.section, contender.settings)
            with findable_trainers():
                trainer_class = recursive_find_trainer_class_by_name(TRAINER_OF_SECTION[contender.section])
        own = {**copy.deepcopy(plans.plans), "continue_training": False}
        trainer = trainer_class(own, plans.configuration, 0, plans.dataset_json, torch.device(device))
        trainer.initialize()
    trainer.network.train()
    if device == "cuda":  # as nnU-Net's run_training
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = False, True
    return trainer


def random_batch(trainer: Any) -> dict[str, Any]:
    """Return a batch as stock nnU-Net's loader gives it to `trainer`: noise, labels at every resolution, keys."""
    import torch
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    labels, manager = trainer.label_manager, trainer.configuration_manager
    generator = torch.Generator().manual_seed(0)
    size = tuple(manager.patch_size)
    transforms = [DownsampleSegForDSTransform(trainer._get_deep_supervision_scales())]
    if labels.has_regions:
        regions = [*labels.foreground_regions, *([labels.ignore_label] if labels.has_ignore_label else [])]
        transforms.insert(0, ConvertSegmentationToRegionsTransform(regions))
    values = torch.tensor(labels.all_labels, dtype=torch.int16)
    drawn = values[torch.randint(len(values), (manager.batch_size, 1, *size), generator=generator)]
    scales = [ComposeTransforms(transforms)(segmentation=sample)["segmentation"] for sample in drawn]
    batch = {
        "data": torch.randn((manager.batch_size, trainer.num_input_channels, *size), generator=generator),
        "target": [torch.stack(samples) for samples in zip(*scales, strict=True)],
    }
    if trainer.device.type == "cuda":
        batch = {"data": batch["data"].pin_memory(), "target": [scale.pin_memory() for scale in batch["target"]]}
    return {**batch, "keys": [f"patient_{number}" for number in range(manager.batch_size)]}


def training_step(trainer: Any, batch: Mapping[str, Any]) -> Callable[[], object]:
    """Return one training step of `trainer` on `batch`."""
    return lambda: trainer.train_step({**batch, "target": list(batch["target"])})


def median_seconds(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Time each of the steps once a round, after rounds that do not count; return their medians in seconds."""
    import torch
    from tqdm import trange

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in trange(WARM_UP[device] + rounds, desc="rounds", leave=False):
        for name, step in steps.items():
            wait()
            start = time.perf_counter()
            step()
            wait()
            if number >= WARM_UP[device]:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def training_seconds(plans: Plans, contenders: Mapping[str, Contender], rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of a training step of each; they take turns on one random batch of stock nnU-Net's."""
    with scratch_folders(plans):
        batch = random_batch(make_trainer(plans, Contender(), device))
        steps = {
            name: training_step(make_trainer(plans, contender, device), batch) for name, contender in contenders.items()
        }
        return median_seconds(steps, rounds, device)


def peak_memory(plans: Plans, contender: Contender, device: str) -> tuple[int, int]:
    """Return the most bytes in use during a training step, weights and optimiser included, in a process of its own.

    Returns:
        On CUDA what torch allocated, and what it reserved for that. On a CPU, twice: weights and optimiser, and the
        growth of the resident memory above what the process had before the step. Torch's own profiler would not see
        the buffers that oneDNN allocates. It needs Linux (`/proc`) and glibc.
    """
    if device == "cuda":
        import torch

        gc.collect()
        torch.cuda.empty_cache()
    process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    with environment(PROMPT_MALLOC), scratch_folders(plans), process as pool:
        return pool.submit(_peak_memory_here, plans, contender, device).result()


def _peak_memory_here(plans: Plans, contender: Contender, device: str) -> tuple[int, int]:
    import torch

    trainer = make_trainer(plans, contender, device)
    stock = trainer if contender.section is None else make_trainer(plans, Contender(), "cpu")
    step = training_step(trainer, random_batch(stock))
    del stock
    for _ in range(WARM_UP[device] + 1):
        step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = [*trainer.network.parameters(), *trainer.network.buffers(), *states]
    held = sum(value.nbytes for value in tensors if isinstance(value, torch.Tensor))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on, see proc(5)
    start = _resident_memory("VmRSS")
    step()
    peak = held + _resident_memory("VmHWM") - start
    return peak, peak


def _resident_memory(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def prediction_networks(plans: Plans) -> dict[str, Any]:
    """Return stock nnU-Net's network and stage 3's as prediction has them: one resolution, evaluation mode."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from nnunetv2_unimrseg.method.networks.build import build_network

    plans_manager, manager = plans.managers()
    heads = plans_manager.get_label_manager(plans.dataset_json).num_segmentation_heads
    channels = plans.patch_shape[1]
    stock = nnUNetTrainer.build_network_architecture(plans_manager, manager, channels, heads, False)
    own = build_network(manager, channels, heads, False, adapters=True)
    return {"stock": stock.eval(), "stage3": own.eval()}


def prediction_seconds(plans: Plans, rounds: int, device: str) -> dict[str, float]:
    """Return the median seconds of predicting one patch: by stock nnU-Net, and by stage 3 complete and incomplete.

    Keys: `stock`, `complete` and `incomplete` (the first modality is missing).
    """
    import torch

    networks = {name: network.to(device) for name, network in prediction_networks(plans).items()}
    patch = torch.randn(plans.patch_shape, device=device)
    incomplete = patch.clone()
    incomplete[:, 0] = torch.nan

    def predict(name: str, image: torch.Tensor) -> None:
        with torch.inference_mode(), torch.autocast("cuda") if device == "cuda" else contextlib.nullcontext():
            networks[name](image)

    steps = {
        "stock": lambda: predict("stock", patch),
        "complete": lambda: predict("stage3", patch),
        "incomplete": lambda: predict("stage3", incomplete),
    }
    return median_seconds(steps, rounds, device)


def hardware(device: str) -> str:
    """Return the names of the processor and, for CUDA, of the GPU."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.is_file() else "", re.MULTILINE)
    processor = f"{named.group(1) if named else platform.machine()}, {os.cpu_count()} logical cores"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}; {processor}"
    return f"{processor}, {torch.get_num_threads()} used"
