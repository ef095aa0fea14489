"""Why a customer may not control a server that several tenants share."""

from __future__ import annotations

MODELS = "models are deployed by the operator, not over this API"
MEMORY = "shared memory with the server is not offered; send the data in the request"
STATISTICS = "statistics of shared servers are not offered"
TRACING = "trace settings belong to the operator"
LOGGING = "log settings belong to the operator"
