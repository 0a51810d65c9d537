"""UniMRSeg itself: networks, augmentation, losses, metrics, and what a step costs."""
