"""Requests of a command under `rayward judge`: each paid once, within a budget.

A reply is a line of a cache file, on the disk before the next request starts, under a hash of all
that decides it: prompt, model, sampling, order, number of the sample. A killed command loses what
was under way; the same one again asks for the rest, and costs nothing where all is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.feedback.prompt_files import digest
from rayward.data.records import RowError
from rayward.pipelines.data_tools.ledger import Ledger

if TYPE_CHECKING:
    from rayward.pipelines.data_tools.endpoint import ChatModel

CACHE_FORM = {"replies of": "rayward judge", "form": 1}
"""The first line of a cache file."""
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

    So the sum never passes the limit. `spent`: what earlier runs paid for the replies of this one.
    """

    def __init__(self, limit: float | None, prices: Sequence[float], spent: float = 0.0) -> None:
        if limit is not None and not any(prices):
            raise ValueError("--budget needs the prices of tokens (--judge-price IN OUT)")
        self.limit, self.prices, self.spent, self.reserved = limit, prices, spent, 0.0
        self.given_back = asyncio.Condition()

    def price(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Of so many tokens."""
        return (prompt_tokens * self.prices[0] + reply_tokens * self.prices[1]) / 1e6

    def most(self, request: Request, fields: Mapping[str, Any]) -> float:
        """The most that a request can cost. ValueError where its reply has no limit."""
        longest = fields.get("max_completion_tokens") or fields.get("max_tokens")
        if longest is None:
            raise ValueError("--budget needs max_tokens among the fields of the request")
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


class TooManyUnreadableError(ValueError):
    """More replies than are allowed cannot be read."""


class Asking:
    """The replies to many requests: from the cache, or else from a model.

    `readable`: whether a reply to a request is what was asked for; `allowed`: how many may not be.
    """

    def __init__(
        self,
        cache: Ledger,
        model: ChatModel,
        identity: str,
        options: argparse.Namespace,
        readable: Callable[[Request, Mapping[str, Any]], bool] = lambda request, reply: True,
        allowed: int | None = None,
    ) -> None:
        """`identity`: what the model is, beside its name; `options`: seed, concurrency, budget."""
        self.cache, self.model, self.identity, self.options = cache, model, identity, options
        self.readable, self.allowed = readable, allowed
        self.unreadable = 0
        self.unanswered, self.refused = list[str](), list[str]()
        self.stopped = ""  # why not all was asked
        self.budget = Budget(options.budget, model.prices)

    def fields(self, request: Request) -> dict[str, Any]:
        """What is sent beside the prompt. Each sample has a seed of its own."""
        seed = self.options.seed + request.sample
        return {"seed": seed, **self.model.fields, **request.fields}

    def key(self, request: Request) -> str:
        """The name of the reply in the cache: of all that decides it."""
        decides = {
            "model": self.model.name,
            "is": self.identity,
            "prompt": list(request.prompt),
            "fields": self.fields(request),
            "sample": request.sample,
            "order": request.place.get("order"),
        }
        return digest(json.dumps(decides, sort_keys=True, ensure_ascii=False))

    def reply(self, request: Request) -> dict[str, Any] | None:
        """The reply that the cache has."""
        key = self.key(request)
        return self.cache.get(key) if key in self.cache.places else None

    def ask(self, requests: Iterable[Request]) -> None:
        """Ask for what the cache lacks of these.

        Sets `stopped` where the budget ends it. Raises TooManyUnreadableError, and what
        `ChatModel.ask` raises.
        """
        from rayward.pipelines.data_tools.at_once import at_once

        missing = dict[str, Request]()
        for request in requests:
            key = self.key(request)
            if key not in self.cache.places:
                missing.setdefault(key, request)
                continue
            reply = self.cache.get(key)
            self.budget.spent += self._cost(reply, 0.0)
            self._count(request, reply)

        async def one(item: tuple[str, Request]) -> None:
            if not self.stopped:
                await self._ask(*item)

        at_once(missing.items(), len(missing), self.options.concurrency, one)

    async def _ask(self, key: str, request: Request) -> None:
        from rayward.pipelines.data_tools.endpoint import NoReplyError

        limited = self.budget.limit is not None
        amount = self.budget.most(request, self.fields(request)) if limited else 0.0
        try:
            await self.budget.reserve(amount)
        except BudgetError as error:
            # No exception for the others: what they have asked for is paid, and comes in.
            self.stopped = str(error)
            return
        cost = 0.0
        try:
            reply = await self._reply(key, request)
            cost = self._cost(reply, amount)
        except NoReplyError as error:
            # Not in the cache, so that the next run asks for it again.
            self.unanswered.append(str(error))
            return
        except RowError as error:
            self.refused.append(f"{error.found[:300]}")
            return
        finally:
            await self.budget.settle(amount, cost)
        self._count(request, reply)

    async def _reply(self, key: str, request: Request) -> dict[str, Any]:
        """A model's reply, once it is in the cache."""
        seed, fields = self.options.seed + request.sample, dict(request.fields)
        ask = self.model.go_on if request.of_ids else self.model.ask
        started = time.perf_counter()
        reply = await ask(request.prompt, seed, **fields)
        row = {
            **request.place,
            "sample": request.sample,
            "text": reply.text,
            "cut": reply.cut,
            "prompt_tokens": reply.prompt_tokens,
            "reply_tokens": reply.reply_tokens,
            "time": round(time.time(), 3),
            "seconds": round(time.perf_counter() - started, 3),
        }
        more = {"reasoning": reply.reasoning, "logprobs": dict(reply.logprobs)}
        row |= {name: value for name, value in more.items() if value}
        self.cache.add(key, row)
        return row

    def _cost(self, reply: Mapping[str, Any], most: float) -> float:
        """What a reply cost; the most where the endpoint did not count its tokens."""
        if reply["prompt_tokens"] is None or reply["reply_tokens"] is None:
            return most
        return self.budget.price(reply["prompt_tokens"], reply["reply_tokens"])

    def _count(self, request: Request, reply: Mapping[str, Any]) -> None:
        if self.readable(request, reply):
            return
        self.unreadable += 1
        if self.allowed is not None and self.unreadable > self.allowed:
            raise TooManyUnreadableError(
                f"{self.unreadable} replies of {self.model.name} cannot be read, and --unreadable "
                f"allows {self.allowed}. The last one: {reply['text'][:300]!r}. Is it the right "
                "model, and the right prompt? What it said is in the cache; allow more to go on"
            )

    def account(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Requests and tokens: of this run, and in all replies that are used, with their price."""
        replies = [reply for request in requests if (reply := self.reply(request))]
        prompt_tokens = sum(reply["prompt_tokens"] or 0 for reply in replies)
        reply_tokens = sum(reply["reply_tokens"] or 0 for reply in replies)
        return {
            "replies": len(replies),
            "wanted": len({self.key(request) for request in requests}),
            "unreadable": self.unreadable,
            "refused": len(self.refused),
            "unanswered": len(self.unanswered),
            "prompt_tokens": prompt_tokens,
            "reply_tokens": reply_tokens,
            "price": round(self.budget.price(prompt_tokens, reply_tokens), 6),
            "this_run": self.model.counts(),
        }


def open_cache(stack: ExitStack, path: Path) -> Ledger:
    """The cache of replies at `path`, until the stack ends. ValueError: another command has it."""
    cache = Ledger(path, CACHE_FORM)
    stack.callback(cache.file.close)
    return cache


def identity_of(model: str) -> str:
    """What a model is beside its name: the digest of its files, where it is a folder."""
    from rayward.pipelines.data_tools.endpoint import is_folder
    from rayward.pipelines.run.given import model_digest

    return model_digest(Path(model)) if is_folder(model) else ""
