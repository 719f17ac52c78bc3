"""Services with an OpenAPI document (2.0 to 3.2) as tool sources: FastAPI, mcpo, and everything else."""

from toolway.tools.openapi.source import OpenAPISource

__all__ = ["OpenAPISource"]
