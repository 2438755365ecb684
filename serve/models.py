"""Open the models that a service draws with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldmrt.runtime.errors import InvalidRequest, LdmrtError
from ldmrt.runtime.nearest import suggestion
from ldmrt.runtime.pipeline.pipeline import Pipeline
from ldmrt.serve.batching.knee import knee, measure, timed
from ldmrt.serve.batching.room import rows_per_call

MOST_ROWS = 32  # that are tried


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


def chosen(models: Mapping[str, Pipeline], name: str | None) -> str:
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


def rows_of(pipeline: Pipeline) -> int:
    """Measure how many rows a call of a model's U-Net should have at its own size.

    Networks that take turns in memory, or have no axis of rows, get one request at a time.
    """
    unet = pipeline.engines["unet"]
    by_row = all(spec.shape and isinstance(spec.shape[0], str) for spec in unet.inputs)
    if pipeline.engines.take_turns or not by_row:
        return 1
    side = pipeline.stage.size
    most = rows_per_call(pipeline, (side, side), MOST_ROWS)
    return knee(measure(timed(unet, side, pipeline.stage.space.factor), most))
