"""Asking models behind OpenAI-compatible endpoints: paced, counted, within a deadline.

The `openai` client repeats what failed (no connection, 408, 409, 429, 5xx) after growing pauses, or
those that Retry-After asks for. Every try passes `ChatModel._pace`, so the rate limit holds for
repeated requests, too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion

from rayward.cluster.serve.vllm_server import served
from rayward.data.records import RowError

LONGEST_PAUSE_S = 120.0  # the longest Retry-After that the client heeds
FAILURES_IN_A_ROW = 20  # from so many on the endpoint is taken for broken, and the run ends
AT_URL = "@(?=https?://)"  # a model's name may have an @ of its own


T = TypeVar("T", Completion, ChatCompletion)


class NoReplyError(Exception):
    """No reply after all tries, by a fault of the endpoint: worth asking again another time.

    `details`: what it said, or how it failed.
    """

    def __init__(self, reason: str, details: str = "") -> None:
        super().__init__(reason)
        self.details = details[:300]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said; `cut`: it was stopped at the largest number of tokens.

    Tokens are None where the endpoint does not count them. `reasoning`: what it thought before,
    where the endpoint tells it apart. `logprobs`: of the likeliest first tokens, where asked for.
    """

    text: str
    cut: bool
    prompt_tokens: int | None = None
    reply_tokens: int | None = None
    reasoning: str = ""
    logprobs: Mapping[str, float] = field(default_factory=dict)


class ChatModel:
    """A model in a role, and the count of what was asked of it."""

    def __init__(self, options: argparse.Namespace, role: str, url: str) -> None:
        values = vars(options)
        self.role, self.url, self.name = role, url, model_name(values[role])
        self.fields: dict[str, Any] = values[f"{role}_request"]
        self.prices = values[f"{role}_price"]
        self.pause_s = 60 / options.requests_per_minute if options.requests_per_minute else 0.0
        # Before a try, every other request in work may take a slot of the rate limit.
        one_try_s = options.timeout + LONGEST_PAUSE_S + options.concurrency * self.pause_s
        self.deadline_s = (options.retries + 1) * one_try_s
        self.next_slot = 0.0  # on the clock of time.monotonic
        self.calls = self.requests = self.prompt_tokens = self.reply_tokens = self.failures = 0
        # A proxy is for the network, not for a server of our own.
        http_client = openai.DefaultAsyncHttpxClient(
            event_hooks={"request": [self._pace]}, trust_env=not is_folder(values[role])
        )
        self.client = openai.AsyncOpenAI(
            base_url=url,
            api_key=os.environ.get(values[f"{role}_key"]) or "none",
            timeout=options.timeout,
            max_retries=options.retries,
            http_client=http_client,
        )

    async def _pace(self, request: httpx.Request) -> None:
        """Called before every try: wait for the next slot of the rate limit."""
        self.requests += 1
        # No lock: nothing is awaited between reading the slot and taking it.
        now = time.monotonic()
        self.next_slot = max(self.next_slot + self.pause_s, now)
        await asyncio.sleep(self.next_slot - now)

    async def ask(self, messages: Sequence[Any], seed: int, **fields: Any) -> Reply:
        """The reply to `messages`. RowError: the endpoint refuses it; `NoReplyError`: it fails.

        ValueError: it refuses every request (key, address, name). ConnectionError: too many failed
        in a row.
        """

        def create(body: dict[str, Any]) -> Awaitable[ChatCompletion]:
            return self.client.chat.completions.create(
                model=self.name, messages=messages, extra_body=body
            )

        def read(answer: ChatCompletion) -> Reply:
            choice = answer.choices[0]
            top = choice.logprobs.content if choice.logprobs else None
            # Some tell the log-prob of each token, and no others.
            others = top[0].top_logprobs or () if top else ()
            logprobs = {token.token: float(token.logprob) for token in others}
            said = choice.message
            # The names that vLLM and others give it.
            thought = getattr(said, "reasoning_content", None) or getattr(said, "reasoning", None)
            return _reply(answer, said.content, thought, logprobs)

        return await self._asked(
            create, ChatCompletion, {"seed": seed, **self.fields, **fields}, read
        )

    async def go_on(self, ids: Sequence[int], seed: int, **fields: Any) -> Reply:
        """What follows the token ids of a prompt. Raises as `ask` does."""

        def create(body: dict[str, Any]) -> Awaitable[Completion]:
            return self.client.completions.create(
                model=self.name, prompt=list(ids), extra_body=body
            )

        def read(answer: Completion) -> Reply:
            return _reply(answer, answer.choices[0].text)

        return await self._asked(create, Completion, {"seed": seed, **self.fields, **fields}, read)

    async def _asked(
        self,
        create: Callable[[dict[str, Any]], Awaitable[T]],
        kind: type[T],
        body: dict[str, Any],
        read: Callable[[T], Reply],
    ) -> Reply:
        """The reply that `read` finds in the endpoint's answer, of a `kind`, to a request with
        these fields; counted.
        """
        # Later ones win: the run's fields over the seed, those of this request over both; null
        # takes a field out for endpoints that do not know it.
        body = {name: value for name, value in body.items() if value is not None}
        self.calls += 1
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await create(body)
        except (
            openai.APIConnectionError,
            openai.RateLimitError,
            openai.InternalServerError,
            TimeoutError,
        ) as error:
            raise self._failed(
                NoReplyError(type(error).__name__, str(error)), str(error)
            ) from error
        except openai.APIStatusError as error:
            if error.status_code in (401, 403, 404):  # not this request's fault: the next fails too
                raise ValueError(
                    f"{self.url} refuses the {self.role} {self.name}: {error.message}"
                ) from error
            refused = RowError(
                "request", error.message, "one that is taken", "refused by the endpoint"
            )
            raise self._failed(refused, error.message) from error
        # Bytes that are no text, or no JSON.
        except (ValueError, openai.APIResponseValidationError) as error:
            raise self._failed(self._odd(error, ""), str(error)) from error
        if not isinstance(answer, kind) or not answer.choices:
            said = str(answer)[:200]
            raise self._failed(
                NoReplyError("no completion", said), f"{said!r}; is {self.url} right?"
            )
        try:
            reply = read(answer)
        # The library takes whatever stands in the fields of an answer.
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise self._failed(self._odd(error, str(answer)), str(answer)) from error
        self.failures = 0
        self.prompt_tokens += reply.prompt_tokens or 0
        self.reply_tokens += reply.reply_tokens or 0
        return reply

    def _odd(self, error: Exception, answer: str) -> NoReplyError:
        details = f"{self.url}: {error}; {answer}"
        return NoReplyError("an answer of another shape than OpenAI's", details)

    def _failed(self, failure: Exception, message: str) -> Exception:
        """`failure`, or the end of the run where the endpoint does nothing but fail."""
        self.failures += 1
        if self.failures < FAILURES_IN_A_ROW:
            return failure
        return ConnectionError(
            f"{self.url}: {self.failures} requests in a row failed, the last one with: "
            f"{message[:500]}\nWhat is done is kept; run the same command again to go on"
        )

    def counts(self) -> dict[str, Any]:
        """Requests, those of them that were repetitions, tokens, and what they cost."""
        cost = (self.prompt_tokens * self.prices[0] + self.reply_tokens * self.prices[1]) / 1e6
        tokens = {"prompt_tokens": self.prompt_tokens, "reply_tokens": self.reply_tokens}
        return {
            "requests": self.requests,
            "retries": self.requests - self.calls,
            **tokens,
            "cost": round(cost, 6),
        }


def _reply(
    answer: Completion | ChatCompletion,
    text: str | None,
    reasoning: str | None = None,
    logprobs: Mapping[str, float] | None = None,
) -> Reply:
    """The reply in an answer. TypeError: some field is of another kind."""
    prompt_tokens, reply_tokens = None, None
    # Of an endpoint that counts only one of the two nothing is known.
    if answer.usage and None not in (answer.usage.prompt_tokens, answer.usage.completion_tokens):
        prompt_tokens = _count(answer.usage.prompt_tokens)
        reply_tokens = _count(answer.usage.completion_tokens)
    cut = answer.choices[0].finish_reason == "length"
    said = (_writable(text), cut, prompt_tokens, reply_tokens, _writable(reasoning))
    return Reply(*said, logprobs or {})


def _count(tokens: Any) -> int:
    if not isinstance(tokens, int):
        raise TypeError(f"usage counts {tokens!r} tokens")
    return tokens


def _writable(text: str | None) -> str:
    """JSON may hold halves of surrogates, which no file could be written with."""
    if not isinstance(text, str | None):
        raise TypeError(f"found {type(text).__name__} where a text is expected")
    return (text or "").encode(errors="replace").decode()


def is_folder(model: str) -> bool:
    """Whether a model is a folder to serve."""
    return (Path(model) / "config.json").is_file()


def model_name(model: str) -> str:
    """The name that an endpoint knows a model by. ValueError: neither NAME@URL nor a folder."""
    if is_folder(model):
        return Path(model).resolve().name  # as cluster/serve/vllm_server.py serves it
    parts = re.split(AT_URL, model)
    if len(parts) != 2:
        raise ValueError(
            f"{model}: neither NAME@http://HOST:PORT/v1 nor a folder with a config.json"
        )
    return parts[0]


@contextmanager
def models(options: argparse.Namespace, *roles: str) -> Iterator[list[ChatModel]]:
    """The models of these roles. A folder is served until the end, once for all roles of it."""
    named = {role: vars(options)[role] for role in roles}
    folders = sorted({model for model in named.values() if is_folder(model)})
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for folder in folders:
            server = served(
                folder, options.context_tokens, options.start_timeout, options.vllm, len(folders)
            )
            urls[folder] = stack.enter_context(server)
        yield [
            ChatModel(options, role, urls.get(model) or re.split(AT_URL, model)[1])
            for role, model in named.items()
        ]
