"""The nnU-Net trainers: three stages and the modality-dropout control."""
