"""Requests of a command under `rayward judge`: each paid once, within a budget.

A reply is a line of a cache file, on the disk before the next request starts, under a hash of all
that decides it: prompt, model, sampling, order, number of the sample. A killed command loses what
was under way; the same one again asks for the rest, and costs nothing where all is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rayward.data.feedback.prompt_files import digest
from rayward.data.records import RowError
from rayward.pipelines.data_tools.ledger import Ledger
from rayward.pipelines.judging.asking.budget import Budget, BudgetError, Request

if TYPE_CHECKING:
    from rayward.pipelines.data_tools.endpoint import ChatModel

T = TypeVar("T")
CACHE_FORM = {"replies of": "rayward judge", "form": 1}
"""The first line of a cache file."""


class TooManyUnreadableError(ValueError):
    """More replies than are allowed cannot be read."""


class Asking:
    """The replies to many requests: from the cache, or else from a model.

    `readable`: whether a reply to a request is what was asked for; `allowed`: how many may not be.
    """

    def __init__(
        self,
        cache: Ledger,
        options: argparse.Namespace,
        role: str,
        stack: ExitStack,
        readable: Callable[[Request, Mapping[str, Any]], bool] = lambda request, reply: True,
        allowed: int | None = None,
    ) -> None:
        """`role`: of the model in the options, which say its name, its fields and its prices.

        `stack`: a folder is served until its end.
        """
        from rayward.data.model_files.hub_models import model_title
        from rayward.pipelines.data_tools.endpoint import is_folder, model_name
        from rayward.pipelines.run.given import model_digest

        values = vars(options)
        self.cache, self.options, self.role, self.stack = cache, options, role, stack
        self.name, self.shared_fields = model_name(values[role]), values[f"{role}_request"]
        self.shown = model_title(values[role]) if is_folder(values[role]) else self.name
        # A folder of the same name may hold another model the next time.
        self.identity = model_digest(Path(values[role])) if is_folder(values[role]) else ""
        self.readable, self.allowed = readable, allowed
        self.model: ChatModel | None = None  # once something is asked
        self.unreadable = 0
        self.used = set[str]()  # keys of replies that are counted
        self.unanswered, self.refused = list[str](), list[str]()
        self.stopped = ""  # why not all was asked
        self.budget = Budget(options.budget, values[f"{role}_price"], role)

    def fields(self, request: Request) -> dict[str, Any]:
        """What is sent beside the prompt. Each sample has a seed of its own."""
        seed = self.options.seed + request.sample
        return {"seed": seed, **self.shared_fields, **request.fields}

    def key(self, request: Request) -> str:
        """The name of the reply in the cache: of all that decides it."""
        decides = {
            "model": self.name,
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

    def use(self, request: Request) -> dict[str, Any] | None:
        """`reply`, counted: what it cost, and whether it can be read."""
        reply = self.reply(request)
        key = self.key(request)
        if reply is not None and key not in self.used:
            self.used.add(key)
            self.budget.spent += self._cost(reply, self._most(request))
            self._count(request, reply)
        return reply

    def ask(self, requests: Iterable[Request]) -> None:
        """Ask for what the cache lacks of these; raises as `work` does."""
        missing = {self.key(request): request for request in requests if self.use(request) is None}
        self.work(list(missing.values()), self.get)

    def work(self, items: Sequence[T], do: Callable[[T], Awaitable[Any]]) -> None:
        """`do` each item, which calls `get`. A folder is served only where there is one.

        Raises TooManyUnreadableError, and what `ChatModel.ask` raises.
        """
        from rayward.pipelines.data_tools.at_once import at_once
        from rayward.pipelines.data_tools.endpoint import models

        if items:
            (self.model,) = self.stack.enter_context(models(self.options, self.role))
            at_once(items, len(items), self.options.concurrency, do)

    async def get(self, request: Request) -> dict[str, Any] | None:
        """The reply to a request, asked for where the cache lacks it; None where there is none.

        Sets `stopped` where the budget ends it: from then on nothing is asked.
        """
        from rayward.pipelines.data_tools.endpoint import NoReplyError

        if self.stopped or (reply := self.use(request)) is not None:
            return None if self.stopped else reply
        amount = self._most(request)
        try:
            await self.budget.reserve(amount)
        except BudgetError as error:
            # No exception for the others: what they have asked for is paid, and comes in.
            self.stopped = str(error)
            return None
        cost = 0.0
        try:
            reply = await self._reply(request)
            cost = self._cost(reply, amount)
        except NoReplyError as error:
            # Not in the cache, so that the next run asks for it again.
            self.unanswered.append(f"{error}: {error.details}" if error.details else str(error))
            return None
        except RowError as error:
            self.refused.append(f"{error.found[:300]}")
            return None
        finally:
            await self.budget.settle(amount, cost)
        self._count(request, reply)
        return reply

    def _most(self, request: Request) -> float:
        """The most that it can cost, where that matters."""
        limited = self.budget.limit is not None
        return self.budget.most(request, self.fields(request)) if limited else 0.0

    async def _reply(self, request: Request) -> dict[str, Any]:
        """A model's reply, once it is in the cache."""
        assert self.model is not None
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
        key = self.key(request)
        self.cache.add(key, row)
        self.used.add(key)
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
                f"{self.unreadable} replies of {self.shown} cannot be read, and --unreadable "
                f"allows {self.allowed}. The last one: {reply['text'][:300]!r}. Is it the right "
                "model, and the right prompt? What it said is in the cache; allow more to go on"
            )

    def account(self, requests: Sequence[Request]) -> dict[str, Any]:
        """Requests and tokens: of this run, and in all replies that are used, with their price."""
        # Two requests may be one: the same answer of two models to the same question.
        wanted = {self.key(request): request for request in requests}
        replies = [reply for request in wanted.values() if (reply := self.reply(request))]
        prompt_tokens = sum(reply["prompt_tokens"] or 0 for reply in replies)
        reply_tokens = sum(reply["reply_tokens"] or 0 for reply in replies)
        return {
            "replies": len(replies),
            "wanted": len(wanted),
            "unreadable": self.unreadable,
            "refused": len(self.refused),
            "unanswered": len(self.unanswered),
            "prompt_tokens": prompt_tokens,
            "reply_tokens": reply_tokens,
            "price": round(
                sum(
                    self._cost(self.cache.get(key), self._most(request))
                    for key, request in wanted.items()
                    if key in self.cache.places
                ),
                6,
            ),
            "this_run": self.model.counts() if self.model else {"requests": 0},
        }


def open_cache(stack: ExitStack, path: Path) -> Ledger:
    """The cache of replies at `path`, until the stack ends. ValueError: another command has it."""
    cache = Ledger(path, CACHE_FORM)
    stack.callback(cache.file.close)
    return cache
