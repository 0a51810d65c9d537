"""What each missing modality costs: every subset of the modalities predicted and scored, and figures of that."""
