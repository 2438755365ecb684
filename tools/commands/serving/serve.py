"""Run `ldmrt serve`: serve bundles over HTTP."""

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ldmrt.serve.jobs.defaults import GRACE, SECONDS, WAITING
from ldmrt.tools.options.cluster import with_ray
from ldmrt.tools.options.common import Choice
from ldmrt.tools.options.drawing import with_opening
from ldmrt.tools.options.loras import refuse_with_ray

if TYPE_CHECKING:
    from ldmrt.runtime.pipeline.pipeline import Pipeline

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port; 0 for a free one.")
@click.option("--keys", type=click.Path(path_type=Path), help="File of API keys, a line `NAME SHA256` for each.")
@click.option("--waiting", type=click.IntRange(min=1), default=WAITING, show_default=True,
              help="Requests that may wait; more are answered by 429.")  # fmt: skip
@click.option("--per-key", type=click.IntRange(min=0), default=0, show_default=True,
              help="Requests of one key that may wait or run; 0 for any number.")  # fmt: skip
@click.option("--timeout", "seconds", type=click.FloatRange(min=0, min_open=True), default=SECONDS, show_default=True,
              help="Seconds after which a request is given up.")  # fmt: skip
@click.option("--grace", type=click.FloatRange(min=0), default=GRACE, show_default=True,
              help="Seconds that running requests have after SIGTERM or Ctrl-C.")  # fmt: skip
@click.option("--rows", type=click.IntRange(min=1),
              help="Rows of a call of the U-Net at the model's own size; measured by default.")  # fmt: skip
@click.option("--log", type=Choice(["text", "json"]), default="text", show_default=True,
              help="Format of the log, a line for each request that has ended.")  # fmt: skip
@click.option("--lora", "loras", multiple=True, metavar="[NAME=]FILE|FOLDER",
              help="LoRA that requests may name, or a folder of them; repeat for more.")  # fmt: skip
@click.option("--styles", "styles_file", type=click.Path(path_type=Path),
              help="File of styles, as AUTOMATIC1111's styles.csv, for its API.")  # fmt: skip
@click.option("--models", type=click.IntRange(min=1),
              help="With --ray: models that a replica keeps in memory; 1.")  # fmt: skip
@with_ray
@with_opening
def serve(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    keys: Path | None,
    waiting: int,
    per_key: int,
    seconds: float,
    grace: float,
    rows: int | None,
    log: str,
    loras: tuple[str, ...],
    styles_file: Path | None,
    ray: dict[str, Any] | None,
    opening: dict[str, Any],
) -> None:
    """Serve BUNDLEs over HTTP: folders or names on the hub, each also as NAME=BUNDLE. The first is the default.

    Requests share the calls of the U-Net, whatever their samplers, steps and prompts.

    Example: ldmrt serve out/emoji64 --port 7860
    """
    from ldmrt.runtime.optional import unavailable
    from ldmrt.runtime.pipeline.prompts.styles import read_styles
    from ldmrt.serve.jobs.observers import JobLog, JsonLines, Observers
    from ldmrt.serve.jobs.reloading import reload_models
    from ldmrt.serve.jobs.service import Service
    from ldmrt.serve.jobs.serving import Serving
    from ldmrt.serve.jobs.tracing import tracing
    from ldmrt.serve.models.loras import check_used, lora_files, open_with_loras
    from ldmrt.serve.models.memory import for_weights
    from ldmrt.serve.models.models import Models
    from ldmrt.serve.models.naming import named
    from ldmrt.serve.models.rows import rows_of
    from ldmrt.tools.console.progress import console

    try:
        import python_multipart  # noqa: F401, FastAPI needs it, and has an error of its own where it is missing

        from ldmrt.serve.http.access import read_keys
        from ldmrt.serve.http.metrics import Metrics
        from ldmrt.serve.http.running import listening, run
        from ldmrt.serve.http.state import Limits, Server

        if ray is not None:
            from ldmrt.serve.ray.bundles import path_everywhere
            from ldmrt.serve.ray.deploying import Deployment
            from ldmrt.serve.ray.scale import Scale
    except ImportError as error:
        raise unavailable(error, "serve") from None

    refuse_with_ray(loras, ray)
    files = lora_files(loras)  # refused before anything is opened
    styles = {} if styles_file is None else read_styles(styles_file)
    owners = {} if keys is None else read_keys(keys)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ldmrt.serve").setLevel(logging.INFO)
    with contextlib.ExitStack() as opened:
        socket = opened.enter_context(listening(host, port))
        paths = named(bundles)
        metrics = Metrics()
        observers = Observers(metrics, JobLog(), *opened.enter_context(tracing()))
        if ray is not None:
            where = {name: path_everywhere(path) for name, path in paths.items()}
            scale = Scale.read(**ray)
            deployment = Deployment(where, scale, rows, scale.opening(opening), grace)
            service: Serving = opened.enter_context(deployment.serving(waiting, observers))
            reload: Callable[[], object] = lambda: None  # noqa: E731
        else:

            def open_bundle(path: str) -> "Pipeline":
                files = lora_files(loras)  # of a folder, those that lie there now
                return open_with_loras(path, files=files, any_fits=len(paths) > 1, **opening)

            held = opened.enter_context(contextlib.closing(Models(for_weights(opening["backend"]))))
            for name, path in paths.items():
                held.put(name, open_bundle(path), rows)
                if rows is None:
                    held.make_room([name])
                    held.model(name).rows = rows_of(held[name])
                size = held[name].stage.size
                console.print(f"{name}: {held.model(name).rows} rows a call at {size} pixels", highlight=False)
            check_used(files, held)
            drawing = opened.enter_context(contextlib.closing(Service(held, waiting=waiting, observer=observers)))
            service, reload = drawing, partial(reload_models, drawing, paths, open_bundle)
        console.print(f"http://{host}:{socket.getsockname()[1]}", highlight=False)
        server = Server(service, metrics, Limits(seconds=seconds, per_key=per_key), owners, styles)
        run(server, socket, grace, reload)
