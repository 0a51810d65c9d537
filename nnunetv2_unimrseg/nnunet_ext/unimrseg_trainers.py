"""What nnU-Net finds in this folder: the installed trainer classes, under the names that checkpoints record."""

from nnunetv2_unimrseg.trainers.modality_dropout import UniMRSegModalityDropoutTrainer
from nnunetv2_unimrseg.trainers.retrofit import UniMRSegRetrofitTrainer
from nnunetv2_unimrseg.trainers.stage1 import UniMRSegStage1Trainer
from nnunetv2_unimrseg.trainers.stage2 import UniMRSegStage2Trainer
from nnunetv2_unimrseg.trainers.stage3 import UniMRSegStage3Trainer

__all__ = [
    "UniMRSegModalityDropoutTrainer",
    "UniMRSegRetrofitTrainer",
    "UniMRSegStage1Trainer",
    "UniMRSegStage2Trainer",
    "UniMRSegStage3Trainer",
]
