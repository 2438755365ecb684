"""The proof that an export computes what its checkpoint does."""
