"""Models of the Hugging Face hub, fetched into its own cache: the files that are read, and no others."""

from pathlib import Path

from ldmrt.model.weights.weight_files import choose, shards
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.hub import fetch
from ldmrt.runtime.files.reading import read_json

from .folder import INDEX, check_variant, split_index


def download(name: str, variant: str | None = None) -> Path:
    """Fetch a model into the hub's cache and return its folder; without a network, the files that are there already.

    Args:
        name: "owner/name" of a model in diffusers' layout.
        variant: The variant of the weights to fetch, such as fp16.

    Raises:
        LdmrtError: There is no such model, it has no such variant, or the hub does not answer.
    """
    folder = fetch("checkpoint", name, [INDEX])
    if not (folder / INDEX).is_file():
        raise LdmrtError("checkpoint", f"{name} on the hub has no {INDEX}", expected="a model in diffusers' layout")
    _, parts = split_index(read_json("checkpoint", folder / INDEX))
    names = _names(name) or [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    inside = {part: [file.partition("/")[2] for file in names if file.startswith(f"{part}/")] for part in parts}
    networks = {part: files for part, files in inside.items() if "config.json" in files}
    check_variant(variant, networks, name)
    needed = [INDEX]
    for part, files in inside.items():
        if part in networks:
            weights = choose(part, files, variant, f"{name}/{part}")
            files = ["config.json", weights, *shards(weights, files)]
        needed += [f"{part}/{file}" for file in files]
    return fetch("checkpoint", name, needed)


def _names(name: str) -> list[str]:
    """List the files of a model; none where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name))
    except Exception:  # of the network, in many classes; `fetch` reports it
        return []
