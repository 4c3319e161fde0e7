"""Ray Serve: applications and the vLLM server behind them."""

# No `from __future__ import annotations`: Serve looks at the class that `app` takes, not its name.
from typing import TYPE_CHECKING

from rayward.cluster.serve.endpoint import Endpoint

if TYPE_CHECKING:
    from ray.serve import Application


def app(endpoint: Endpoint) -> "Application":
    """The chat endpoint for `serve run rayward.cluster.serve:app model=DIR` and Serve's configs.

    It is what stage publish starts. ValueError where `endpoint.model` holds no model.
    """
    # Brings in vLLM, which other modules of this room do without.
    from rayward.cluster.serve.deploy import application

    return application(endpoint)
