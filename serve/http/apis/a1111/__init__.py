"""Serve AUTOMATIC1111's API, `/sdapi/v1`, for clients of its web UI."""
