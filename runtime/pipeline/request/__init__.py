"""A request: its fields, how they are checked, and its parts."""
