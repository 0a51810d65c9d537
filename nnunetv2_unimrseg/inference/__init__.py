"""Predicting with a trained model."""
