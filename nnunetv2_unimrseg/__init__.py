"""UniMRSeg for nnU-Net v2: one model that segments with any subset of its training modalities.

What is named in `__all__` is the public API. Each name is imported when it is first used, so that importing this
package is quick and free of torch: nnU-Net's own commands do so to find the trainers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from nnunetv2_unimrseg.comparison.compare import compare
    from nnunetv2_unimrseg.comparison.comparison import Comparison
    from nnunetv2_unimrseg.config import UniMRSegConfig
    from nnunetv2_unimrseg.errors import UserError
    from nnunetv2_unimrseg.evaluation.evaluate import evaluate
    from nnunetv2_unimrseg.evaluation.evaluation import Evaluation
    from nnunetv2_unimrseg.evaluation.expected_dice import expected_dice
    from nnunetv2_unimrseg.evaluation.files import read_evaluation
    from nnunetv2_unimrseg.inference.options import InferenceOptions
    from nnunetv2_unimrseg.inference.predictor import UniMRSegPredictor
    from nnunetv2_unimrseg.modalities import Modalities
    from nnunetv2_unimrseg.reconstruction.reconstruct import Reconstructions, reconstruct
    from nnunetv2_unimrseg.reports.comparison import write_comparison
    from nnunetv2_unimrseg.reports.evaluation import write_report
    from nnunetv2_unimrseg.reports.prediction import write_prediction_report

_MODULES = {
    "Comparison": "comparison.comparison",
    "Evaluation": "evaluation.evaluation",
    "InferenceOptions": "inference.options",
    "Modalities": "modalities",
    "Reconstructions": "reconstruction.reconstruct",
    "UniMRSegConfig": "config",
    "UniMRSegPredictor": "inference.predictor",
    "UserError": "errors",
    "compare": "comparison.compare",
    "evaluate": "evaluation.evaluate",
    "expected_dice": "evaluation.expected_dice",
    "read_evaluation": "evaluation.files",
    "reconstruct": "reconstruction.reconstruct",
    "write_comparison": "reports.comparison",
    "write_prediction_report": "reports.prediction",
    "write_report": "reports.evaluation",
}

__all__ = [
    "Comparison",
    "Evaluation",
    "InferenceOptions",
    "Modalities",
    "Reconstructions",
    "UniMRSegConfig",
    "UniMRSegPredictor",
    "UserError",
    "compare",
    "evaluate",
    "expected_dice",
    "read_evaluation",
    "reconstruct",
    "write_comparison",
    "write_prediction_report",
    "write_report",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
