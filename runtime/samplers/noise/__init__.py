"""Sources of unit noise: ldmrt's own, and the streams of other programs, which draw the same numbers to the bit."""
