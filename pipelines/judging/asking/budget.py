"""What is asked once, and a budget that the sum of all replies never passes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FRAME_TOKENS = 64
"""More than a chat template writes around a message."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked once. `place`: what it is about, for people who read the cache.

    `prompt`: messages, or the token ids that are gone on with. `sample`: its number, from 0.
    """

    prompt: Sequence[Any]
    place: Mapping[str, Any]
    sample: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_ids(self) -> bool:
        """Whether the prompt is token ids."""
        return bool(self.prompt) and isinstance(self.prompt[0], int)


class BudgetError(Exception):
    """The next request could cost more than is left."""


class Budget:
    """What may be spent. A request takes the most that it can cost, and gives back the rest.

    So the sum never passes the limit. `spent`: with what earlier runs paid for the replies of this
    one.
    """

    def __init__(self, limit: float | None, prices: Sequence[float], role: str) -> None:
        if not all(math.isfinite(price) and price >= 0 for price in prices):
            raise ValueError(f"--{role}-price is {' '.join(map(str, prices))}: 0 and more")
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise ValueError(f"--budget is {limit}: more than 0")
        if limit is not None and not any(prices):
            raise ValueError(f"--budget needs the prices of tokens (--{role}-price IN OUT)")
        self.limit, self.prices, self.spent, self.reserved = limit, prices, 0.0, 0.0
        self.given_back = asyncio.Condition()

    def price(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Of so many tokens."""
        return (prompt_tokens * self.prices[0] + reply_tokens * self.prices[1]) / 1e6

    def most(self, request: Request, fields: Mapping[str, Any]) -> float:
        """The most that a request can cost. ValueError where its reply has no limit."""
        longest = fields.get("max_completion_tokens") or fields.get("max_tokens")
        if longest is None:
            raise ValueError("--budget needs max_tokens among the fields of the request")
        if not isinstance(longest, int) or longest < 1:
            raise ValueError(f"max_tokens is {longest!r}: a budget needs a number, 1 or more")
        choices = fields.get("n", 1)
        longest *= choices if isinstance(choices, int) and choices > 1 else 1
        if request.of_ids:
            return self.price(len(request.prompt), longest)
        # No tokenizer makes more tokens of a text than it has bytes.
        size = sum(len(json.dumps(message).encode()) for message in request.prompt)
        return self.price(size + FRAME_TOKENS * len(request.prompt), longest)

    async def reserve(self, amount: float) -> None:
        """Wait until `amount` is free. BudgetError: it cannot become free any more."""
        if self.limit is None:
            return
        async with self.given_back:
            while self.spent + self.reserved + amount > self.limit:
                if not self.reserved:
                    raise BudgetError(
                        f"{self.spent:.6g} of {self.limit:g} is spent, and the next request may "
                        f"cost up to {amount:.6g}"
                    )
                await self.given_back.wait()
            self.reserved += amount

    async def settle(self, amount: float, cost: float) -> None:
        """What was reserved is replaced by what it cost."""
        self.spent += cost
        if self.limit is None:
            return
        async with self.given_back:
            # Sums of floats: without a request under way nothing is reserved, to the last bit.
            self.reserved = max(0.0, self.reserved - amount)
            self.reserved = 0.0 if self.reserved < 1e-12 else self.reserved
            self.given_back.notify_all()
