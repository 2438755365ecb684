"""Read transformers in files of their own, in the original names or in diffusers', alone or with other parts."""
