"""The names of the stages and of their trainers. Checkpoints and result folders record them: never rename one."""

TRAINER_OF_SECTION = {
    "stage1": "UniMRSegStage1Trainer",
    "stage2": "UniMRSegStage2Trainer",
    "stage3": "UniMRSegStage3Trainer",
    "modality_dropout": "UniMRSegModalityDropoutTrainer",
    "retrofit": "UniMRSegRetrofitTrainer",
}
"""Section of the configuration -> name of the trainer that reads it."""

STAGES = ("stage1", "stage2", "stage3")
"""The three stages in the order in which they are trained."""

RETROFIT = "retrofit"
"""Section of the trainer that starts from a trained nnU-Net and keeps it for complete cases."""

PREVIOUS_STAGE = {"stage2": "stage1", "stage3": "stage2"}

SCRATCH = "scratch"
"""Value of a stage's `start_from` for random weights."""
