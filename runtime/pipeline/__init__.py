"""From a request to images."""
