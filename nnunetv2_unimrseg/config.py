"""Every hyper-parameter of UniMRSeg, as frozen dataclasses, to and from a plans file.

The values live in the plans file under the key `unimrseg` of a configuration, for example

    {"configurations": {"3d_fullres": {..., "unimrseg": {"stage1": {"num_epochs": 50}}}}}

Absent means default, so plans made by stock nnU-Net work as they are. `unimrseg configure` shows and sets them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnunetv2_unimrseg.config_fields import option, value_problem
from nnunetv2_unimrseg.errors import UserError, nearest

PLANS_KEY = "unimrseg"

OBSOLETE = (("stage2", "checkpoint_views"), ("stage3", "checkpoint_views"))
"""Settings that plans of trained models may still hold and that have no effect any more."""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that nnU-Net's trainer has too, under the same names."""

    num_epochs: int = option(1000, "Epochs; nnU-Net's default.", low=1)
    num_iterations_per_epoch: int = option(250, "Training steps an epoch; nnU-Net's default.", low=1)
    num_val_iterations_per_epoch: int = option(50, "Validation batches an epoch; nnU-Net's default.", low=1)
    initial_lr: float = option(1e-2, "Learning rate at epoch 0 (SGD, polynomial decay); nnU-Net's default.", low=0.0)
    final_lr: float = option(
        0.0, "Learning rate that the polynomial decay would reach after the last epoch; nnU-Net's is 0.", low=0.0
    )
    weight_decay: float = option(3e-5, "L2 penalty of SGD; nnU-Net's default.", low=0.0)
    oversample_foreground_percent: float = option(
        0.33, "Share of a batch's patches that are sampled around foreground; nnU-Net's default.", low=0.0, high=1.0
    )
    save_every: int = option(50, "checkpoint_latest.pth is written after so many epochs; nnU-Net's default.", low=1)
    cpu_precision: str = option(
        "auto",
        "Arithmetic of training steps on a CPU: 'auto' is bfloat16 autocast where the CPU has native bfloat16 (half "
        "the time per step there) and float32 elsewhere (where bfloat16 is many times slower). CUDA always has "
        "nnU-Net's float16.",
        choices=("auto", "bfloat16", "float32"),
    )
    seed: int = option(
        -1,
        "Seed of weights, patches and augmentation; -1 draws another one each time. On a CPU and with "
        "nnUNet_n_proc_DA=0 a training can then be repeated, and one that was interrupted after an epoch ends with the "
        "same weights as one that was not.",
        low=-1,
    )


@dataclass(frozen=True)
class SubsetSamplingConfig:
    """How a random subset of the modalities is drawn in training."""

    subset_sampling: str = option(
        "uniform",
        "'by_size': each number of modalities is equally likely, and so is each subset of that number; complete input "
        "is then seen more often. 'uniform': every non-empty subset is equally likely. 'per_modality': each modality "
        "is dropped on its own with dropout_probability (never all of them).",
        choices=("by_size", "uniform", "per_modality"),
    )
    dropout_probability: float = option(
        0.5,
        "Probability that a modality is dropped, for 'per_modality'; 0.5 makes it the same as 'uniform'.",
        low=0.0,
        high=0.95,
    )


@dataclass(frozen=True)
class UnlabelledConfig:
    """How many unlabelled samples the stages that use labels see."""

    unlabelled_share: float = option(
        0.5,
        "Share of a batch's samples that are of unlabelled cases, where there are any; rounded to at least one sample, "
        "and at least one is labelled. Such batches come in the steps that compare views (pairs_every). At 0 "
        "unlabelled cases are left out.",
        low=0.0,
        high=0.9,
    )


@dataclass(frozen=True)
class Stage1Config(TrainingConfig, SubsetSamplingConfig):
    """Stage 1, multi-granular modality reconstruction (paper section 3.1)."""

    num_epochs: int = option(
        18,
        "Epochs. A step takes one forward-backward pass, so this is 1.8 % of stock nnU-Net's budget; nearly all of it "
        "goes to the stages that use labels.",
        low=1,
    )
    shuffle_probability: float = option(
        0.5,
        "Probability, per sample, that the modalities change places among the channels. At 0.5, half of the samples "
        "keep the order that stages 2 and 3 use.",
        low=0.0,
        high=1.0,
    )
    mask_probability: float = option(
        1.0,
        "Probability, per sample, that blocks of the input are masked.",
        low=0.0,
        high=1.0,
    )
    mask_ratio: float = option(
        0.25, "Share of the blocks of each available channel that is masked, drawn per channel.", low=0.0, high=0.95
    )
    mask_block_size: int = option(
        8, "Edge of a masked block, in voxels; at most half the patch's edge is used along short axes.", low=1
    )
    l1_weight: float = option(1.0, "Weight of the mean absolute error.", low=0.0)
    ssim_weight: float = option(1.0, "Weight of 1 - SSIM.", low=0.0)
    ssim_window: int = option(7, "Edge of SSIM's uniform window, in voxels, odd; smaller along short axes.", low=3)


@dataclass(frozen=True)
class Stage2Config(TrainingConfig, SubsetSamplingConfig, UnlabelledConfig):
    """Stage 2, modality-invariant contrastive learning (paper section 3.2)."""

    num_epochs: int = option(
        814,
        "Epochs. A step takes 13/12 forward-backward passes on average, so this is 88.2 % of stock nnU-Net's budget.",
        low=1,
    )
    final_lr: float = option(
        1.25e-3,
        "Learning rate that the polynomial decay would reach after the last epoch. The default is stage 3's initial "
        "rate, so that one decay spans both stages; if you scale it, scale the initial rates of stages 2 and 3 with "
        "it. Set it to 0 where training ends with stage 2.",
        low=0.0,
    )
    dropout_probability: float = option(
        0.2, "Probability that a modality is dropped, for subset_sampling 'per_modality'.", low=0.0, high=0.95
    )
    views: str = option(
        "two_subsets",
        "The two views of a sample. 'two_subsets': two random subsets, either of which may be the complete set. "
        "'complete_and_incomplete': the complete set and a random incomplete one, as in the paper.",
        choices=("two_subsets", "complete_and_incomplete"),
    )
    pairs_every: int = option(
        2,
        "Every so many steps, two views of a sample are compared.",
        low=1,
    )
    second_view: str = option(
        "average",
        "What sees the second view. 'average': the moving average of the network, its encoder alone and without "
        "gradient, for all samples of the step. 'network': the network itself, which learns from both views, as in the "
        "paper; these are then of half of the batch's samples, which costs what one view of all of them costs.",
        choices=("average", "network"),
    )
    contrastive_weight: float = option(
        0.1,
        "Weight of NT-Xent (mean over encoder stages); the segmentation loss has weight 1.",
        low=0.0,
    )
    temperature: float = option(0.2, "Temperature of NT-Xent (no unit); 0.5 in the paper.", low=0.01)
    teacher_weight: float = option(
        1.0,
        "Weight of the distance of predictions for incomplete views of unlabelled samples to those of a moving average "
        "of the network, which sees all modalities that they have. It acts only where there are unlabelled cases.",
        low=0.0,
    )
    teacher_decay: float = option(0.98, "Decay of the moving average in a step.", low=0.0, high=0.9999)
    teacher_start: float = option(0.3, "Share of the epochs after which that teacher is asked.", low=0.0, high=1.0)
    negatives_memory: int = option(
        64,
        "Number of pooled features of past steps that serve NT-Xent as negatives besides the batch's own. At 0, a "
        "batch of one patient has no negatives.",
        low=0,
    )
    start_from: str = option(
        "",
        "Checkpoint to start from instead of stage 1's; a stock nnU-Net's of the same plans will do. '{fold}' in the "
        "path stands for the fold. 'scratch' starts from random weights.",
    )
    stage1_decoder: bool = option(
        True,
        "Whether the decoder of stage 1, without its heads, is taken over besides the encoder.",
        choices=(False, True),
    )


@dataclass(frozen=True)
class AdaptationConfig(TrainingConfig, UnlabelledConfig):
    """How incomplete views learn to give what the complete view gives, by adapters and a decoder."""

    initial_lr: float = option(
        1.25e-3, "Learning rate at epoch 0: an eighth of nnU-Net's default, which is where stage 2 ends.", low=0.0
    )
    subsets_per_step: int | str = option(
        1,
        "Number of incomplete views of each patch in a step, dealt from a shuffled deck of the incomplete subsets; a "
        "number above theirs means all. 'all' takes every incomplete subset in every step, as in the paper; the same "
        "budget then allows far fewer steps.",
        low=1,
        choices=("all",),
    )
    feature_weight: float = option(
        10.0,
        "Weight of the L1 distance of encoder features to the teacher's. At 1, as in the paper, the distance of "
        "predictions has a gradient three times as large, and the adapters hardly close the gap between features.",
        low=0.0,
    )
    prediction_weight: float = option(
        1.0,
        "Weight of the distance of predictions to the teacher's.",
        low=0.0,
    )
    incomplete_label_weight: float = option(
        1.0,
        "Weight of nnU-Net's segmentation loss on the incomplete views, where the complete view's is 1; stage 3 takes "
        "the average. At 0 only the complete view learns from labels, as in the paper.",
        low=0.0,
    )
    adapter_lr: float = option(
        0.01,
        "Learning rate of the adapters at epoch 0: a step changes each of their tensors by this share of its size.",
        low=0.0,
        high=1.0,
    )
    adapters_know_modalities: bool = option(
        True,
        "Whether the adapters' strength depends on which modalities are missing, or, as in the paper, only on whether "
        "one is.",
        choices=(False, True),
    )
    reverse_attention: bool = option(
        True,
        "Whether the adapters multiply what they add by 1 - attention, as in the paper, or by 1.",
        choices=(False, True),
    )
    gradients_through_encoder: bool = option(
        True,
        "Whether gradients flow through the frozen encoder to the adapters of earlier stages; the authors' code cuts "
        "them.",
        choices=(False, True),
    )
    adapter_first_stage: int = option(
        1,
        "Encoder stage of the first adapter. Stage 0 has the full resolution; the paper puts an adapter there too, but "
        "on a CPU a step then takes 1.6 times stock nnU-Net's time instead of 1.1 times.",
        low=0,
    )
    adapter_window: int = option(
        0, "Edge of the adapters' attention windows, in voxels; 0 means 4 in 3D and 8 in 2D (64 tokens).", low=0
    )


@dataclass(frozen=True)
class Stage3Config(AdaptationConfig):
    """Stage 3, incomplete modality adaptive fine-tuning (paper section 3.3)."""

    num_epochs: int = option(
        50,
        "Epochs. A step takes 1 + subsets_per_step / pairs_every forward-backward passes, so this is a tenth of stock "
        "nnU-Net's budget.",
        low=1,
    )
    unlabelled_share: float = option(
        0.0,
        "As in stage 2. At 0 stage 3 learns from labelled cases alone: with half of its samples unlabelled, Dice fell.",
        low=0.0,
        high=0.9,
    )
    pairs_every: int = option(
        1,
        "Every so many steps, the complete view of each sample is compared with its incomplete ones; the other steps "
        "see one view, as in stage 2.",
        low=1,
    )
    adapters: bool = option(
        True,
        "Whether there are adapters. Without them only the decoder learns.",
        choices=(False, True),
    )
    start_from: str = option(
        "",
        "Checkpoint to start from instead of stage 2's; a stock nnU-Net's of the same plans will do. '{fold}' in the "
        "path stands for the fold. 'scratch' starts from random weights.",
    )


@dataclass(frozen=True)
class RetrofitConfig(AdaptationConfig):
    """What a trained nnU-Net needs for missing modalities, beside everything that complete cases pass through."""

    num_epochs: int = option(
        50,
        "Epochs. A step takes 1/3 + subsets_per_step forward-backward passes, so this is less than a tenth of stock "
        "nnU-Net's budget. As in stage 3; not tuned.",
        low=1,
    )
    start_from: str = option(
        "",
        "Checkpoint of the trained nnU-Net, of the same plans; it must be set (`unimrseg train --from-checkpoint "
        "--keep-complete` sets it). '{fold}' in the path stands for the fold.",
    )


@dataclass(frozen=True)
class ModalityDropoutConfig(TrainingConfig, SubsetSamplingConfig):
    """The control that the three stages are compared with: stock nnU-Net with modality dropout."""


@dataclass(frozen=True)
class UniMRSegConfig:
    """All sections; `UniMRSegConfig.from_plans` reads them from a plans file.

    Raises:
        UserError: from `from_dict` and `from_plans`, one error that lists every unknown key and bad value at once.
    """

    stage1: Stage1Config = dataclasses.field(default_factory=Stage1Config)
    stage2: Stage2Config = dataclasses.field(default_factory=Stage2Config)
    stage3: Stage3Config = dataclasses.field(default_factory=Stage3Config)
    modality_dropout: ModalityDropoutConfig = dataclasses.field(default_factory=ModalityDropoutConfig)
    retrofit: RetrofitConfig = dataclasses.field(default_factory=RetrofitConfig)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UniMRSegConfig:
        """Read `{section: {field: value}}`; what is absent keeps its default."""
        problems: list[str] = []
        sections: dict[str, Any] = {}
        known_sections: dict[str, Any] = {field.name: field.default_factory for field in dataclasses.fields(cls)}
        if not isinstance(values, Mapping):
            raise UserError(f"The '{PLANS_KEY}' entry of the plans must be an object of sections, found {values!r}.")
        for name, entries in values.items():
            if name not in known_sections:
                problems.append(f"unknown section '{name}'.{nearest(name, known_sections)}")
            elif not isinstance(entries, Mapping):
                problems.append(f"section '{name}' must be an object of values, found {entries!r}")
            else:
                sections[name], found = _read_section(name, known_sections[name], entries)
                problems += found
        if problems:
            raise UserError(
                f"The UniMRSeg configuration has {len(problems)} problem(s):\n  - "
                + "\n  - ".join(problems)
                + "\n`unimrseg configure -d DATASET -c CONFIGURATION` lists every name, value and range."
            )
        return cls(**sections)

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any], configuration: str) -> UniMRSegConfig:
        """Read the configuration `configuration` of a plans dictionary, following `inherits_from`.

        Raises:
            UserError: also when the plans have no such configuration.
        """
        return cls.from_dict(_inherited(plans, configuration).get(PLANS_KEY, {}))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return every value, defaults included, as `{section: {field: value}}`."""
        return dataclasses.asdict(self)


def _inherited(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    configurations = plans.get("configurations", {})
    if configuration not in configurations:
        raise UserError(
            f"The plans '{plans.get('plans_name', '?')}' have no configuration '{configuration}'."
            f"{nearest(configuration, configurations)} They have: {', '.join(configurations) or 'none'}."
        )
    own = configurations[configuration]
    parent = own.get("inherits_from")
    return {**_inherited(plans, parent), **own} if parent else dict(own)


def _read_section(name: str, section: type, entries: Mapping[str, Any]) -> tuple[object, list[str]]:
    """Return the section with the values that are right, and what is wrong with the others."""
    fields = {field.name: field for field in dataclasses.fields(section)}
    accepted, problems = {}, []
    for key, value in entries.items():
        if (name, key) in OBSOLETE:
            continue
        if key not in fields:
            problems.append(f"unknown key '{name}.{key}'.{nearest(key, fields)}")
            continue
        problem = value_problem(fields[key], value)
        if problem:
            problems.append(f"{name}.{key} = {value!r}: {problem}")
        else:
            accepted[key] = float(value) if isinstance(fields[key].default, float) else value
    return section(**accepted), problems
