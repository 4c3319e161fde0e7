"""Going on by itself after a process or a host was lost, from what the stage has kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rayward.actors.budget import Budget
from rayward.pipelines.run.errors import explain, of_infrastructure

T = TypeVar("T")


class Retries(Budget):
    """Over all stages of a command."""

    def run(self, title: str, work: Callable[[], T]) -> T:
        """What `work` returns, which is called again where it is worth it. Raises what it raises
        elsewhere.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not of_infrastructure(error) or not self.take():
                    raise
                print(
                    f"   {title} lost a process: {_short(error)}\n"
                    f"   goes on from what is kept ({len(self.at)} of {self.most} times within an "
                    "hour, cluster.retries)",
                    flush=True,
                )


def _short(error: Exception) -> str:
    # Without what a person would do: it is done here.
    return explain(error).split("\n")[0].split("; when the cluster has room")[0][:300]
