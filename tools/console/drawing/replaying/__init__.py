"""Draw images again from the records in their files."""
