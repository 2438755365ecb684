"""Serve bundles to many callers at once."""
