"""A Ray Serve deployment: each replica is the whole server, with its own device.

    serve run app.cluster.deployment:application model_store=s3://models/store

Ray routes, scales and replaces replicas; what a replica answers, refuses and says of its health is
what `ternaus serve` does, because it is the same application.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve

from app.api.app import create_app
from app.assembly import engines_of, labels_of, store_of
from app.settings import Settings

# Ray's own names for what a deployment and its actors are given.
_DEPLOYMENT = ("num_replicas", "max_ongoing_requests", "max_queued_requests")
_ACTOR = ("num_cpus", "num_gpus")


def application(options: Mapping[str, Any]) -> Any:
    """What `serve run` and `serve.run` take.

    `options` holds settings by their names in lower case without the prefix (`model_store`,
    `models`, ...), and for Ray `num_replicas`, `max_ongoing_requests`, `max_queued_requests`,
    `num_cpus` and `num_gpus` of each replica. Settings that are not given come from the environment
    of the replica. Raises SettingsError on the replica for what is neither.
    """
    rest = dict(options)
    # The server's own door refuses early and says why; Ray must not queue in front of it.
    given = {"max_ongoing_requests": 512}
    given.update({name: int(rest.pop(name)) for name in _DEPLOYMENT if name in rest})
    actor = {name: float(rest.pop(name)) for name in _ACTOR if name in rest}

    def build() -> FastAPI:
        return replica(rest)

    deployment: Any = serve.deployment(name="ternausnet")(serve.ingress(build)(Segmentation))
    return deployment.options(**given, ray_actor_options=actor).bind()


class Segmentation:
    """The application on its own; Ray asks it whether it lives."""

    app: FastAPI

    def check_health(self) -> None:
        """Raises RuntimeError where only a new replica helps, so that Ray starts one."""
        house = self.app.state.house
        if not house.live:
            raise RuntimeError(f"the engine is {house.state}")


def replica(options: Mapping[str, Any]) -> FastAPI:
    """The application of one replica, which is not up before its models are open."""
    settings = Settings.read(**{"engine_threads": _cores(), **options})
    store = store_of(settings)
    return create_app(
        settings,
        labels=lambda: labels_of(settings, store),
        resolve=store.resolve,
        open_engine=engines_of(settings),
        wait=True,
    )


def _cores() -> int | None:
    """Cores that Ray gave this actor; None to take what the settings say."""
    share = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return int(share) or None
