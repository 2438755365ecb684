"""Read what a training learns beside its images: captions, classes and regularisation images."""
