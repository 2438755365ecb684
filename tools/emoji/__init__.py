"""The demo's data set: its builder, its images with captions, and its score."""
