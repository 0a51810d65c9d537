"""The missing scans themselves: what a stage-1 model makes of the modalities that a case has."""
