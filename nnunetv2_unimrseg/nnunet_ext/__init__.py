"""The folder that nnUNet_extTrainer points to; nnU-Net imports every module in it as a top-level module."""
