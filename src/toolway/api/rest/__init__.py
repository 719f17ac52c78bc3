"""The whole catalog as one REST service: /openapi.json, POST /tools/{name}, and a page of documentation at /docs."""

from toolway.api.rest.routes import DocsPage, RestTools

__all__ = ["DocsPage", "RestTools"]
