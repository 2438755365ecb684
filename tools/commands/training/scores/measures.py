"""Name what `ldmrt evaluate` measures of the images of any model."""

OF_FEATURES = ("fid", "kid", "precision", "recall")  # which compare features of images
MEASURES = (*OF_FEATURES, "memorisation")
LEAST = {"fid": 2, "kid": 2, "precision": 4, "recall": 4, "memorisation": 1}  # drawn images: 3 neighbours and itself
LEAST_OF_FOLDER = {**LEAST, "memorisation": 2}  # files
