"""Models of the Hugging Face hub, fetched into its own cache: the files that are read, and no others."""

from collections.abc import Collection
from pathlib import Path

from ldmrt.model.weights.weight_files import choose, shards
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.hub import fetch
from ldmrt.runtime.files.reading import read_json
from ldmrt.runtime.files.recognise import gguf_error, only_gguf

from .folder import CONFIGS, INDEX, SCHEDULER, check_variant, folders_of, split_index


def download(
    name: str, variant: str | None = None, left_out: Collection[str] = (), replaced: Collection[str] = ()
) -> Path:
    """Fetch a model into the hub's cache and return its folder; without a network, the files that are there already.

    Args:
        name: "owner/name" of a model in diffusers' layout.
        variant: The variant of the weights to fetch, such as fp16.
        left_out: Parts that are not fetched.
        replaced: Parts of which the config alone is fetched, as the weights come from elsewhere.

    Raises:
        LdmrtError: There is no such model, it has no such variant, or the hub does not answer.
    """
    folder, names = fetch("checkpoint", name, [INDEX]), _names(name)
    if not (folder / INDEX).is_file():
        if gguf := only_gguf(names):
            raise gguf_error("checkpoint", f"{name}/{gguf}", "a model in diffusers' layout")
        raise LdmrtError("checkpoint", f"{name} on the hub has no {INDEX}", expected="a model in diffusers' layout")
    content = read_json("checkpoint", folder / INDEX)
    _, parts = split_index(content, left_out)
    names = names or [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    folders = folders_of(parts, content, names.__contains__)
    inside = {part: _inside(names, place) for part, place in folders.items()}
    inside |= {SCHEDULER: [CONFIGS[SCHEDULER]]} if folders.get(SCHEDULER) == "" else {}
    networks = {part: files for part, files in inside.items() if "config.json" in files}
    check_variant(variant, networks, name)
    needed = [INDEX]
    for part, files in inside.items():
        if part in networks:
            weights = [] if part in replaced else [choose(part, files, variant, f"{name}/{folders[part]}")]
            files = ["config.json", *weights, *(shard for index in weights for shard in shards(index, files))]
        needed += [f"{folders[part]}/{file}".removeprefix("/") for file in files]
    return fetch("checkpoint", name, needed)


def _inside(names: list[str], folder: str) -> list[str]:
    """Return the names of the files in a folder of a model; those beside model_index.json for ""."""
    start = f"{folder}/" if folder else ""
    return [name.removeprefix(start) for name in names if name.startswith(start) and (folder or "/" not in name)]


def _names(name: str) -> list[str]:
    """List the files of a model; none where the hub does not answer."""
    from huggingface_hub import HfApi

    try:
        return list(HfApi().list_repo_files(name))
    except Exception:  # of the network, in many classes; `fetch` reports it
        return []
