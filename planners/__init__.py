"""Planning and preprocessing for UniMRSeg's three stages; installed as nnunetv2_unimrseg.planners."""
