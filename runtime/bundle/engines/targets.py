"""Names the libraries and GPUs that engines are built for; without NumPy, so that a command's help is fast."""

import re

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}  # backends that run engines: names and titles
PORTABLE = "portable"
# The GPUs of a portable engine of TensorRT-RTX. Its targets end at consumer cards, without Hopper and its like.
RTX_PORTABLE = ("sm80", "sm86", "sm89", "sm120", "sm121")
RTX_TARGETS = ("sm75", *RTX_PORTABLE)
TARGET = re.compile(rf"sm[0-9]{{2,3}}|{PORTABLE}")
