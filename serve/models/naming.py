"""Name the models of a service, and find one by its name."""

from collections.abc import Collection, Sequence
from pathlib import Path

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.nearest import suggestion


def named(bundles: Sequence[str]) -> dict[str, str]:
    """Return bundles by the names that callers give: NAME=BUNDLE, or the folder's own name.

    Raises:
        LdmrtError: Two have one name.
    """
    found = dict[str, str]()
    for bundle in bundles:
        name, given, path = bundle.partition("=")
        if not given or "/" in name:
            name, path = Path(bundle.rstrip("/")).name, bundle
        if name in found:
            raise LdmrtError("serve", f"two models have the name {name!r}", hint=f"NAME={bundle}")
        found[name] = path
    return found


def chosen(models: Collection[str], name: str | None) -> str:
    """Return the name of the model that is asked for; the first is the default.

    Raises:
        InvalidRequest: There is none of this name.
    """
    if name is None:
        return next(iter(models))
    if name not in models:
        problem = f"no model {name!r:.100}{suggestion(name, models)}"
        raise InvalidRequest("serve", problem, expected=", ".join(models))
    return name
