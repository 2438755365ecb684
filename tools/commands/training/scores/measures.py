"""Name what `ldmrt evaluate` measures of any model."""

OF_FEATURES = ("fid", "kid", "precision", "recall")  # which compare features of images
MEASURES = (*OF_FEATURES, "memorisation")  # by default
OF_NETWORK = ("loss", "bound")  # of the folder's images, for which none is drawn
OF_CAPTIONS = ("clip", *OF_NETWORK)  # for which images need not be files
ALL = (*MEASURES, *OF_CAPTIONS)
# Drawn images: 3 neighbours and itself. A standard error is of two images or more.
LEAST = {"fid": 2, "kid": 2, "precision": 4, "recall": 4, "memorisation": 1, "clip": 1, "loss": 1, "bound": 2}
LEAST_OF_FOLDER = {**LEAST, "memorisation": 2}  # files
