"""Name bundles for the processes of other folders and machines."""

from pathlib import Path


def path_everywhere(bundle: str | Path) -> str:
    """Return a bundle's name for other processes: folders by their whole paths, names on the hub as they are."""
    path = Path(bundle)
    return str(path.resolve()) if path.exists() else str(bundle)
