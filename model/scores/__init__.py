"""Compare generated images with real ones: distances of features, coverage of their manifolds, nearest neighbours."""
