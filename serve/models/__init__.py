"""The models of a service: how they are named, opened, and kept in memory."""
