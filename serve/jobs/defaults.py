"""The defaults of a service, which commands show without loading it."""

WAITING = 64  # requests that may wait
SECONDS = 600.0  # after which a request is given up
GRACE = 30.0  # seconds that requests have where a service is stopped
