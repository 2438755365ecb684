"""Images in a terminal: which protocol it has, how an image is written in it, and frames in one place."""
