"""Serve a page that draws images in a browser, from files of this package alone."""
