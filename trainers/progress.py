"""progress.png and the values behind it, under names that say what they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from nnunetv2_unimrseg.utils.files import whole_file


class ProgressLogger(LocalLogger):
    """nnU-Net's log of one value an epoch, with more keys and a plot that names them.

    Args:
        curves: key -> label of what the plot shows beside the losses; keys new to nnU-Net are added to the log.
        quality_axis: what the axis of the curves means, with its unit or range.
        keeps_dice: whether nnU-Net's own Dice keys stay (False for reconstruction).
    """

    def __init__(self, curves: Mapping[str, str], quality_axis: str, *, keeps_dice: bool = True) -> None:
        super().__init__()
        self.curves = dict(curves)
        self.quality_axis = quality_axis
        log = self.my_fantastic_logging
        if not keeps_dice:
            for key in ("mean_fg_dice", "ema_fg_dice", "dice_per_class_or_region"):
                del log[key]
        for key in curves:
            log.setdefault(key, [])

    def plot_progress_png(self, output_folder: str) -> None:
        """Write progress.png: losses with the curves, duration of the epochs, learning rate."""
        log = self.my_fantastic_logging
        epochs = min(len(values) for values in log.values())
        numbers = np.arange(epochs)
        figure, (losses, durations, rates) = plt.subplots(3, 1, figsize=(12, 16), sharex=True, layout="constrained")
        quality = losses.twinx()
        losses.plot(numbers, log["train_losses"][:epochs], color="tab:blue", marker=".", label="training loss")
        losses.plot(numbers, log["val_losses"][:epochs], color="tab:red", marker=".", label="validation loss")
        colours = ("tab:green", "tab:olive", "tab:purple", "tab:brown")
        for (key, label), colour in zip(self.curves.items(), colours, strict=False):
            quality.plot(numbers, log[key][:epochs], color=colour, ls="--", marker=".", label=label)
        losses.set_ylabel("loss")
        quality.set_ylabel(self.quality_axis)
        handles = [handle for axes in (losses, quality) for handle in axes.get_legend_handles_labels()[0]]
        losses.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3)
        seconds = np.subtract(log["epoch_end_timestamps"][:epochs], log["epoch_start_timestamps"][:epochs])
        durations.plot(numbers, seconds, color="tab:blue", marker=".")
        durations.set(ylabel="duration of an epoch [s]", ylim=(0, None))
        rates.plot(numbers, log["lrs"][:epochs], color="tab:blue", marker=".")
        rates.set(ylabel="learning rate", xlabel="epoch")
        with whole_file(Path(output_folder) / "progress.png") as temporary:
            figure.savefig(temporary, dpi=80)
        plt.close(figure)
