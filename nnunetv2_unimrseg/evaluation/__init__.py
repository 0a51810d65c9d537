"""What each missing modality costs: predicting and scoring every subset of the modalities, and the figures made of it."""
