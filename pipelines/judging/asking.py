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
LEAST_UNREADABLE = 10
"""Replies that may be unreadable, however few there are."""
MAX_TOLD = 5
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
        options: argparse.Namespace,
        role: str,
        readable: Callable[[Request, Mapping[str, Any]], bool] = lambda request, reply: True,
        allowed: int | None = None,
    ) -> None:
        """`role`: of the model in the options, which say its name, its fields and its prices."""
        from rayward.pipelines.data_tools.endpoint import is_folder, model_name
        from rayward.pipelines.run.given import model_digest

        values = vars(options)
        self.cache, self.options, self.role = cache, options, role
        self.name, self.shared_fields = model_name(values[role]), values[f"{role}_request"]
        # A folder of the same name may hold another model the next time.
        self.identity = model_digest(Path(values[role])) if is_folder(values[role]) else ""
        self.readable, self.allowed = readable, allowed
        self.model: ChatModel | None = None  # once something is asked
        self.unreadable = 0
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

    def ask(self, requests: Iterable[Request]) -> None:
        """Ask for what the cache lacks of these.

        Sets `stopped` where the budget ends it. Raises TooManyUnreadableError, and what
        `ChatModel.ask` raises. A folder is served only where something is missing.
        """
        from rayward.pipelines.data_tools.at_once import at_once
        from rayward.pipelines.data_tools.endpoint import models

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

        if missing:
            with models(self.options, self.role) as (self.model,):
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
                f"{self.unreadable} replies of {self.name} cannot be read, and --unreadable "
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
            "this_run": self.model.counts() if self.model else {"requests": 0},
        }


def open_cache(stack: ExitStack, path: Path) -> Ledger:
    """The cache of replies at `path`, until the stack ends. ValueError: another command has it."""
    cache = Ledger(path, CACHE_FORM)
    stack.callback(cache.file.close)
    return cache


def allowed_unreadable(options: argparse.Namespace, count: int) -> int:
    """How many of so many replies may be something else than what was asked for."""
    if options.unreadable is None:
        return max(LEAST_UNREADABLE, count // 10)
    if options.unreadable < 0:
        raise ValueError(f"--unreadable is {options.unreadable}, expected 0 or more")
    return int(options.unreadable)


def ask_all(asking: Asking, requests: Sequence[Request], allowed: int) -> None:
    """Ask for what is missing, and tell how much that is."""
    there = sum(asking.key(request) in asking.cache.places for request in requests)
    print(
        f"{len(requests)} replies of {asking.name}, {there} of them in the cache; up to "
        f"{allowed} may be unreadable",
        flush=True,
    )
    asking.ask(requests)


def account_of(asking: Asking, requests: Sequence[Request]) -> dict[str, Any]:
    """What was asked and what it cost; "stopped" says why not all is there."""
    account = {"asked": asking.account(requests), "stopped": asking.stopped}
    return account | {"refusals": asking.refused[:20]}


def tell_account(account: dict[str, Any], out: Path) -> int:
    """Print what was asked, what it cost and what is missing; the status: 1 where something is."""
    from rayward.pipelines.run.metrics import table

    asked = dict(account["asked"])
    this_run = asked.pop("this_run", {})
    table("", asked | {f"this run: {name}": value for name, value in this_run.items()})
    if lacking := account["lacking"]:
        print(f"{len(lacking)} turns are left out, as an answer is missing:")
        for text in lacking[:MAX_TOLD]:
            print(f"  {text}")
    print(out)
    wanted, there = asked.get("wanted", 0), asked.get("replies", 0)
    if account["stopped"]:
        print(
            f"stopped before the budget: {account['stopped']}; {there} of {wanted} replies are "
            "there. Raise --budget and run it again to go on"
        )
    elif there < wanted:
        print(
            f"{wanted - there} replies are missing; run the same command again to ask for them "
            "again"
        )
    for refusal in account.get("refusals", [])[:MAX_TOLD]:
        print(f"  refused: {refusal}")
    return int(there < wanted)
