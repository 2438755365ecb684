"""Draw images and animations again from the records in their files."""
