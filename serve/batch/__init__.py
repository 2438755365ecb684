"""Draw the lines of a file, each of them once, and go on where that was stopped."""
