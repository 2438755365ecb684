"""Read images and their captions from folders, archives and datasets."""
