"""Name what `ldmrt evaluate` measures of the images of any model."""

OF_FEATURES = ("fid", "kid", "precision", "recall")  # which compare features of images
MEASURES = (*OF_FEATURES, "memorisation")
