"""Planning for nnU-Net with the memory of UniMRSeg's three stages; installed as nnunetv2_unimrseg.planners."""
