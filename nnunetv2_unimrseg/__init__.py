"""UniMRSeg for nnU-Net v2: one model that segments with any subset of its training modalities.

Importing this package is light (no torch): nnU-Net imports it each time it looks for a trainer.
"""

__version__ = "0.1.0"
