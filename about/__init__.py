"""Latent diffusion from PyTorch to ONNX to TensorRT: exported, proven unchanged, and run without torch."""


def __getattr__(name: str) -> str:
    """Read the version when it is asked for: the metadata of installed packages take a while to import."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ldmrt")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
