"""Reconstruction of missing modalities from the available ones, with a stage-1 model."""
