"""Who would stand where on a live cluster: the last part of what `--dry-run` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rayward.cluster.connect import connect
from rayward.cluster.placement import planned_now
from rayward.cluster.planning import ranks
from rayward.configs.plan import roles
from rayward.configs.schema import Config
from rayward.configs.sections.machines import Role
from rayward.configs.stages import parts


def where_text(config: Config, stages: Sequence[str]) -> str:
    """The host of each process of the stages, on the cluster as it is now; starts nothing there.

    ValueError, with a table, where the actors of a stage do not fit.
    """
    connect(config.cluster)
    lines = ["", "hosts (on the cluster as it is now)"]
    for stage in [stage for stage in stages if parts(config, stage)]:
        for table in _at_once(roles(config, stage)):
            lines += _lines(config, stage, table)
    return "\n".join(lines)


def _at_once(table: dict[str, Role]) -> Iterator[dict[str, Role]]:
    """Stage sample ends its actors before it trains."""
    train = {name: role for name, role in table.items() if name == "train"}
    others = {name: role for name, role in table.items() if name != "train"}
    yield from (part for part in (others, train) if part)


def _lines(config: Config, stage: str, table: dict[str, Role]) -> Iterator[str]:
    plan, free = planned_now(table, config)
    for role, addresses in plan.addresses().items():
        if role not in table:  # a learner of another stage, whose place is kept
            continue
        places = [
            f"{ranks([rank for rank, other in enumerate(addresses) if other == address])} "
            f"on {address}"
            for address in dict.fromkeys(addresses)
        ]
        # Serve places its replicas by itself: that they fit is all that is known.
        told = "; ".join(places) if role != "serve" else "where Ray Serve puts them"
        yield f"  {stage:<9} {role:<10} {told}"
    if not free:
        yield f"  {stage:<9} waits until there is room: others use the cluster"
