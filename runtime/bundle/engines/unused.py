"""Engines of a bundle that nothing will use again."""

from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.file_cache import HashCache

from .store import CHANGED, FOLDER, PLAN, engines, model_digests


def unused_engines(bundle: Bundle, versions: dict[str, str]) -> list[tuple[Path, str]]:
    """Find engines that are unfinished, damaged, of another model, or of another version of their library.

    Args:
        bundle: The bundle whose engines are looked at.
        versions: The installed versions by backend. Engines of other backends are not compared.

    Returns:
        The engines' folders, each with the reason.
    """
    unused, hashes = list[tuple[Path, str]](), HashCache(bundle.path / FOLDER)
    for engine in engines(bundle.path):
        if isinstance(engine, LdmrtError):
            unused.append((bundle.path / FOLDER / engine.where.removeprefix("engine "), engine.problem))
            continue
        recipe = engine.recipe
        if recipe.component not in bundle.graphs:
            unused.append((engine.folder, f"the bundle has no {recipe.component}"))
        elif (recipe.graph, recipe.weights) != model_digests(bundle, recipe.component):
            unused.append((engine.folder, f"{recipe.component} has changed"))
        elif versions.get(recipe.backend, recipe.version) != recipe.version:
            unused.append((engine.folder, f"made by {recipe.version}, {versions[recipe.backend]} is installed"))
        elif hashes.sha256(f"{engine.folder.name}/{PLAN}", engine.folder / PLAN) != engine.sha256:
            unused.append((engine.folder, CHANGED))
    hashes.keep()
    return unused
