"""A backend compared with a recording of the reference, without torch."""
