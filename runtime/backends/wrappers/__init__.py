"""Engines around other engines: of few rows at a time, with embeddings kept, or called with latents."""
