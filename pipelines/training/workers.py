"""The workers of a training as the driver knows them: whether they still move, and their end."""

from __future__ import annotations

import uuid
from typing import Any

from ray.exceptions import RayActorError

from rayward.actors.calls import kill
from rayward.actors.pulse import ProcessLost, Unanswered, Watch
from rayward.pipelines.run.errors import of_infrastructure


class Workers:
    """Of one training. `signs`: what their signs of life are kept under; see `Job.signs`."""

    def __init__(self, title: str, count: int, limit_s: float) -> None:
        """`limit_s`: after which one that has not moved is taken to hang."""
        self.signs, self.limit_s = f"{title}-{uuid.uuid4().hex}", limit_s
        self.watch = Watch({f"{title} worker {n}": f"{self.signs}-{n}" for n in range(count)})
        self.handles: list[Any] = []
        """Of the actors, as they have told."""

    def check(self) -> None:
        """Raise Unanswered, with who is where since when, if none has moved for so long."""
        if not self.watch.moved(self.limit_s):
            raise Unanswered(
                f"{self.watch.told()}: no progress for {self.limit_s:.0f} s; if only slow, raise "
                "cluster.call_timeout_s"
            )

    def lost(self, error: BaseException) -> ProcessLost | None:
        """What Ray Train's error means where processes of the group are gone; None where it is of
        the work itself.
        """
        failures: dict[int, Exception] = getattr(error, "worker_failures", {})
        # Ray Train finds them by its health check.
        causes = {
            rank: getattr(failure, "health_check_failure", failure)
            for rank, failure in failures.items()
        }
        gone = [rank for rank, cause in causes.items() if isinstance(cause, RayActorError)]
        if not gone or not all(of_infrastructure(cause) for cause in causes.values()):
            return None
        who = self.watch.only(gone)
        return who.lost(causes[gone[0]])

    def end(self) -> None:
        """End their processes, hung ones too. Ray Train then ends the training."""
        for handle in self.handles:
            kill(handle)
