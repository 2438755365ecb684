"""What engines are built by, and for which GPUs."""

BACKENDS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
PORTABLE = "portable"
# What TensorRT-RTX compiles a portable engine for. Its targets end at consumer cards: Hopper and the like are none.
RTX_PORTABLE = ("sm80", "sm86", "sm89", "sm120", "sm121")
RTX_TARGETS = ("sm75", *RTX_PORTABLE)
