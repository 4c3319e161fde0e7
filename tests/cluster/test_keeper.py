"""Who may serve under a name, and when the name is free again: the keeper itself, without Serve."""

from __future__ import annotations

import time

import pytest
import ray

from rayward.cluster.serve import keeper


def there() -> bool:
    try:
        ray.get_actor(keeper.NAME, namespace=keeper.NAMESPACE)
    except ValueError:
        return False
    return True


def test_a_name_has_one_holder_until_it_is_released(local_ray: None) -> None:
    keeper.hold("one")
    began = time.monotonic()
    with pytest.raises(ValueError, match="Serve application one is up for another command"):
        keeper.hold("one")
    assert time.monotonic() - began < 30
    # The one that was refused, whose holder has ended by now, has not taken the other's place.
    with pytest.raises(ValueError, match="Serve application one is up for another command"):
        keeper.hold("one")
    keeper.hold("two")
    keeper.release("one")
    keeper.hold("one")
    keeper.release("two")
    keeper.release("one")
    until = time.monotonic() + 30
    while there():
        assert time.monotonic() < until
        time.sleep(0.2)
