"""nnU-Net's recommended residual-encoder planner, with a memory target that holds for the costliest stage."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    nnUNetPlannerResEncL,
)

from nnunetv2_unimrseg.config import PLANS_KEY, UniMRSegConfig
from nnunetv2_unimrseg.errors import UserError
from nnunetv2_unimrseg.modalities import Modalities
from nnunetv2_unimrseg.nnunet.dataset_json import check_dataset_json
from nnunetv2_unimrseg.nnunet.modalities_in_plans import MODALITIES_KEY
from nnunetv2_unimrseg.nnunet.paths import plans_path
from nnunetv2_unimrseg.planners.memory import ViewCost, stage_costs, view_cost
from nnunetv2_unimrseg.utils.files import read_json

PLANS_NAME = "nnUNetUniMRSegPlans"
STOCK_PLANS_NAME = "nnUNetPlans"

PLANNING_KEY = "unimrseg_planning"
"""Entry of the plans that records what was asked of the planner and which settings it chose."""

DEFAULT_BASE_FEATURES = 32
DEFAULT_GPU_MEMORY_TARGET = 24.0


class UniMRSegPlanner(nnUNetPlannerResEncL):
    """Plan the network of the recommended preset (residual encoder, 24 GB) for UniMRSeg's three stages.

    Patch, batch and network start from what nnU-Net would plan for the memory target. Where a stage does not fit,
    stage 2's views are computed one after another, then the batch is lowered (to no less than 2: contrast needs two
    patients), then the patch. Settings under `unimrseg` of plans of the same name are kept.

    Args:
        dataset_name_or_id: as in nnU-Net; its fingerprint must exist.
        gpu_memory_target_in_gb: memory, in GB, that the costliest stage may take.
        preprocessor_name: as in nnU-Net.
        plans_name: name of the plans file; the preprocessed data gets folders of this name too.
        overwrite_target_spacing: as in nnU-Net, mm.
        suppress_transpose: as in nnU-Net.
        base_features: features of the first stage, 1 to 32. The topology is that of 32; all stages are narrowed alike.

    Raises:
        UserError: for a dataset of one modality, a target that is not positive or too small for any patch, a
            `base_features` out of range, and when plans of that name were made by another planner.
    """

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = DEFAULT_GPU_MEMORY_TARGET,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = PLANS_NAME,
        overwrite_target_spacing: list[float] | tuple[float, ...] | None = None,
        suppress_transpose: bool = False,
        base_features: int = DEFAULT_BASE_FEATURES,
    ) -> None:
        check_request(gpu_memory_target_in_gb, base_features, plans_name)
        super().__init__(
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
        )
        self.UNet_vram_target_GB = gpu_memory_target_in_gb
        self.base_features = base_features
        check_dataset_json(self.dataset_json, f"dataset.json of {self.dataset_name}", raw=True)
        self.modalities = Modalities.from_dataset_json(self.dataset_json)
        self.user_settings = settings_to_keep(earlier_plans(self.dataset_name, plans_name))
        self._settings: dict[str, Any] = {}
        self._view_costs: dict[str, ViewCost] = {}

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Return the name of the preprocessed folder: always of these plans alone, no stock folder is shared."""
        return f"{self.plans_identifier}_{configuration_name}"

    def get_plans_for_configuration(
        self,
        spacing: Sequence[float],
        median_shape: Sequence[int],
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict[str, Any],
    ) -> dict[str, Any]:
        """Plan one configuration: as nnU-Net, within the memory of the costliest stage."""
        name = data_identifier.removeprefix(f"{self.plans_identifier}_")
        self._settings = self.user_settings.get(name, {})
        try:
            plan = super().get_plans_for_configuration(
                spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
            )
        except ArithmeticError as error:
            raise UserError(
                f"No patch of the configuration {name} fits into {self.UNet_vram_target_GB} GB with a batch of "
                f"{self.UNet_min_batch_size}. Give more memory with -gpu_memory_target."
            ) from error
        costliest = self._highest_cost(self._view_cost(plan["architecture"], plan["patch_size"]))
        fitting = int(self._budget(len(spacing)) // costliest)
        plan["batch_size"] = max(self.UNet_min_batch_size, min(plan["batch_size"], fitting))
        plan["architecture"] = narrowed(plan["architecture"], self.base_features)
        if self.modalities.groups is not None:
            plan[MODALITIES_KEY] = self.modalities.groups
        return {**plan, PLANS_KEY: self._settings} if self._settings else plan

    def static_estimate_VRAM_usage(
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: Mapping[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Return the number that nnU-Net compares with its reference to choose the patch.

        It is stock nnU-Net's, or what a batch of two needs at the costliest stage where that is more.
        """
        architecture = {
            "network_class_name": arch_class_name,
            "arch_kwargs": arch_kwargs,
            "_kw_requires_import": arch_kwargs_req_import,
        }
        cost = self._view_cost(architecture, patch_size)
        reference_batch_size = self._reference_batch_size(len(patch_size))
        needed: float = self._highest_cost(cost) * self.UNet_min_batch_size / reference_batch_size
        return max(float(cost.plain), needed)

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Write the plans as nnU-Net does, with a record of the memory target and of what it led to."""
        plans[PLANNING_KEY] = {
            "gpu_memory_target_in_gb": self.UNet_vram_target_GB,
            "base_features": self.base_features,
        }
        for name, settings in self.user_settings.items():
            configuration = plans["configurations"].get(name, {})
            if settings and "inherits_from" in configuration:  # not planned by itself: 3d_cascade_fullres
                configuration[PLANS_KEY] = settings
        super().save_plans(plans)

    def _view_cost(self, architecture: Mapping[str, Any], patch_size: Sequence[int]) -> ViewCost:
        key = repr((patch_size, architecture["arch_kwargs"], self._settings))
        if key not in self._view_costs:
            num_classes = len(self.dataset_json["labels"])
            self._view_costs[key] = view_cost(
                architecture, patch_size, self.modalities.channels, num_classes, self._settings
            )
        return self._view_costs[key]

    def _highest_cost(self, cost: ViewCost) -> int:
        """Return the costliest stage's need, per sample."""
        return int(max(stage_costs(cost).values()))

    def _reference_batch_size(self, num_axes: int) -> int:
        return int(self.UNet_reference_val_corresp_bs_2d if num_axes == 2 else self.UNet_reference_val_corresp_bs_3d)

    def _budget(self, num_axes: int) -> float:
        """Return the measure that a whole batch may reach at the memory target."""
        reference = self.UNet_reference_val_2d if num_axes == 2 else self.UNet_reference_val_3d
        target = self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        return float(reference * target * self._reference_batch_size(num_axes))


def check_request(gpu_memory_target_in_gb: float, base_features: int, plans_name: str) -> None:
    """Check what is asked of the planner.

    Raises:
        UserError: for a memory target that is not positive, `base_features` outside 1 to 32, and the name of nnU-Net's
            own plans, whose preprocessed data other plans share.
    """
    if plans_name == STOCK_PLANS_NAME:
        raise UserError(
            f"'{STOCK_PLANS_NAME}' is the name of nnU-Net's own plans and of data that other plans use too. "
            f"Choose another (default: {PLANS_NAME})."
        )
    if not gpu_memory_target_in_gb > 0:
        raise UserError(f"The GPU memory target must be more than 0 GB, found {gpu_memory_target_in_gb}.")
    if not 1 <= base_features <= DEFAULT_BASE_FEATURES:
        raise UserError(
            f"The base features must be a whole number from 1 to {DEFAULT_BASE_FEATURES} (nnU-Net's), found "
            f"{base_features}: patch and batch are planned for {DEFAULT_BASE_FEATURES}, so more would not fit."
        )


def narrowed(architecture: Mapping[str, Any], base_features: int) -> dict[str, Any]:
    """Return the same topology with every stage's features scaled by `base_features` / 32, at least 1 each."""
    result = copy.deepcopy(dict(architecture))
    planned = result["arch_kwargs"]["features_per_stage"]
    result["arch_kwargs"]["features_per_stage"] = [
        max(1, features * base_features // DEFAULT_BASE_FEATURES) for features in planned
    ]
    return result


def earlier_plans(dataset_name: str, plans_name: str) -> dict[str, Any]:
    """Return the plans of that name that planning will replace, or none (`{}`).

    Raises:
        UserError: when they are another planner's or damaged.
    """
    path = plans_path(dataset_name, plans_name)
    if not path.is_file():
        return {}
    plans = read_json(path)
    planner = plans.get("experiment_planner_used")
    if planner != UniMRSegPlanner.__name__:
        raise UserError(
            f"{path} was made by the planner {planner}; replacing it would change a network that others use. "
            f"Choose another name with -overwrite_plans_name (default: {PLANS_NAME})."
        )
    return plans


def settings_to_keep(plans: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return `{configuration: {section: {field: value}}}` that the user has set in `plans`, made by this planner.

    Raises:
        UserError: when a setting is wrong.
    """
    kept = {name: entries.get(PLANS_KEY, {}) for name, entries in plans.get("configurations", {}).items()}
    for settings in kept.values():
        UniMRSegConfig.from_dict(settings)
    return kept
