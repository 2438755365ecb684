"""Engines of a bundle that nothing will use again."""

from pathlib import Path

from ldmrt.runtime.bundle.bundle import Bundle
from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.files.file_cache import HashCache

from .store import CHANGED, FOLDER, PLAN, engines, model_digests


def unused_engines(bundle: Bundle, versions: dict[str, str]) -> list[tuple[Path, str]]:
    """Folders of engines that nothing will use again, and why: unfinished, damaged, of another model, or of another
    version than the ones installed here, by backend.
    """
    found, stamps = [], HashCache(bundle.path / FOLDER)
    for one in engines(bundle.path):
        if isinstance(one, LdmrtError):
            found.append((bundle.path / FOLDER / one.where.removeprefix("engine "), one.problem))
            continue
        recipe = one.recipe
        if recipe.component not in bundle.graphs:
            found.append((one.folder, f"the bundle has no {recipe.component}"))
        elif (recipe.graph, recipe.weights) != model_digests(bundle, recipe.component):
            found.append((one.folder, f"{recipe.component} has changed"))
        elif versions.get(recipe.backend, recipe.version) != recipe.version:
            found.append((one.folder, f"made by {recipe.version}, {versions[recipe.backend]} is installed"))
        elif stamps.sha256(f"{one.folder.name}/{PLAN}", one.folder / PLAN) != one.sha256:
            found.append((one.folder, CHANGED))
    stamps.keep()
    return found
