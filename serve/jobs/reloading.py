"""Open the bundles of a service again, while it serves."""

import logging
from collections.abc import Callable, Mapping
from functools import partial

from ldmrt.runtime.errors import LdmrtError
from ldmrt.runtime.pipeline.pipeline import Pipeline

from .service import Service

log = logging.getLogger("ldmrt.serve")


def reload_models(service: Service, paths: Mapping[str, str], open_bundle: Callable[[str], Pipeline]) -> None:
    """Open all bundles of a service again, and draw later requests with them.

    A bundle that cannot be opened is logged; its requests are drawn as before.

    Args:
        service: Draws the requests.
        paths: The bundle of each model.
        open_bundle: Opens a bundle.
    """
    for name, path in paths.items():
        _reload(service, name, partial(open_bundle, path))


def _reload(service: Service, name: str, open_again: Callable[[], Pipeline]) -> None:
    """Replace one model, and log whether it was."""
    try:
        service.replace_model(name, open_again())
    except (LdmrtError, OSError) as error:
        log.error("model %s was not reloaded: %s", name, error)
    except Exception:  # a bug: the model goes on as it was, and the others are still to be opened
        log.exception("model %s was not reloaded", name)
    else:
        log.info("model %s was reloaded", name)
