"""What each missing modality costs: predicting and scoring cases with every subset of their modalities."""
