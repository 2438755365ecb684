"""Put the routes of a server together."""

from fastapi import FastAPI

import ldmrt
from ldmrt.serve.page import files, reference, samplers

from . import health, own
from .access import Access
from .apis import openai
from .apis.a1111 import routes as a1111
from .errors import add_error_handlers
from .state import Server


def application(server: Server) -> FastAPI:
    """Return the ASGI application of a server."""
    app = FastAPI(
        title="ldmrt",
        version=ldmrt.__version__,
        summary="Draw images with latent diffusion models.",
        docs_url=None,  # FastAPI's pages load their scripts from another host
        redoc_url=None,
    )
    app.state.server = server
    add_error_handlers(app)
    for routes in (own, openai, a1111, health):
        app.include_router(routes.router)
    for own_routes in (files.router, reference.router, samplers.router(server.service.models)):
        app.include_router(own_routes)
    app.add_middleware(Access, server=server)
    return app
