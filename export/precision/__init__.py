"""Components in half precision, and float32 where that would err."""
