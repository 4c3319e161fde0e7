"""A reward model behind HTTP: a Ray Serve replica that scores conversations in dynamic batches.

POST /score  {"messages": [{"role", "content"}, ...]}  or  {"conversations": [[...], ...]}, and,
             where an answer was cut at a limit of tokens, "finished": [bool, ...], one for each
             conversation (default: all ended by themselves); where tools are on offer, "tools":
             [[schema, ...] or null, ...], one for each as well
         ->  {"scores": [float, ...], "tokens": [int, ...], "model": str}
GET /health  ->  {"status": "ok", "model": str, "scored": conversations so far,
                  "batches": in how many batches}

Requests of different clients that come within `batch_wait_s` of each other share forward passes.
What a client did wrong is a 4xx that names the message (400: a conversation that is none; 413: one
too long, or too many); what takes longer than the deadline is a 504; a replica with too many
waiting refuses with 503.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from ray import serve

from rayward.actors.models.forward import RankContext, sequence_inputs
from rayward.actors.models.load import load_scalar
from rayward.actors.process import device
from rayward.data.formats.rows.message_parts import message_parts
from rayward.data.parts import tools_of
from rayward.data.ragged import Ragged
from rayward.data.records import Role, RowError, Turn, check_turns
from rayward.data.templates.scored import scored
from rayward.data.templates.template import find
from rayward.data.templates.tokenizer import load_tokenizer

APP = "rayward-score"
api = FastAPI(title="Rayward reward model")


@dataclass(frozen=True)
class Limits:
    """What one request may ask, and how requests are put together."""

    template: str = "tokenizer"
    context_tokens: int = 2048
    dtype: str = "float32"
    threads: int = 1
    gpus: float = 0.0
    max_conversations: int = 256
    deadline_s: float = 60.0
    max_batch: int = 64
    batch_wait_s: float = 0.005
    micro_batch_tokens: int = 8192
    max_waiting: int = 1024


class Message(BaseModel, extra="allow"):
    """An OpenAI message: calls of tools, their results and reasoning are read, too."""

    role: str
    content: str


class Request(BaseModel):
    """One conversation, or several."""

    messages: list[Message] | None = None
    conversations: list[list[Message]] | None = None
    finished: list[bool] | None = None
    tools: list[list[dict[str, Any]] | None] | None = None


# Before the class, which Serve pickles where it is decorated, with the functions there are.
def turn_of(message: Message, where: str) -> Turn:
    """A message as a turn. RowError for a part that is none, whose field begins with `where`."""
    role = cast(Role, message.role)  # `check_turns` says whether it is one
    return Turn(role, message.content, **message_parts(message.model_dump(), role, where))


@serve.deployment(ray_actor_options={"num_cpus": 0.1})
@serve.ingress(api)
class ScoreService:
    """One replica."""

    def __init__(self, folder: str, limits: Limits):
        torch.set_num_threads(limits.threads)
        self.name, self.limits = Path(folder).name, limits
        self.context = RankContext(0, 1, device(limits.gpus))
        self.tokenizer, self.template = load_tokenizer(folder), find(limits.template)
        self.module = load_scalar(folder, limits.dtype).to(self.context.device).eval()
        positions = self.module.classifier.config.get_text_config().max_position_embeddings
        self.context_tokens = min(limits.context_tokens, positions)
        self.scored = self.batches = 0
        # The decorator of `batched` is evaluated before there are limits.
        self.batched.set_max_batch_size(limits.max_batch)
        self.batched.set_batch_wait_timeout_s(limits.batch_wait_s)

    @api.get("/health")
    def health(self) -> dict[str, Any]:
        return {"status": "ok", "model": self.name, "scored": self.scored, "batches": self.batches}

    @api.post("/score")
    async def score(self, request: Request) -> dict[str, Any]:
        if (request.messages is None) == (request.conversations is None):
            raise HTTPException(400, "give either messages or conversations")
        if request.messages is not None:
            conversations, fields = [request.messages], ["messages"]
        else:
            conversations = request.conversations or []
            fields = [f"conversations[{index}]" for index in range(len(conversations))]
        limits = self.limits
        if not conversations or len(conversations) > limits.max_conversations:
            message = f"{len(conversations)} conversations; give 1 to {limits.max_conversations}"
            raise HTTPException(413 if conversations else 400, message)
        count = len(conversations)
        finished = [True] * count if request.finished is None else request.finished
        tools = [None] * count if request.tools is None else request.tools
        for name, given in (("finished", finished), ("tools", tools)):
            if len(given) != count:
                message = f"{name} has {len(given)} entries for {count} conversations"
                raise HTTPException(400, message)
        rows = [self._row(*row) for row in zip(fields, conversations, finished, tools, strict=True)]
        try:
            # Each row by itself, so that Serve batches them with those of other requests.
            scores = await asyncio.wait_for(
                asyncio.gather(*(self.batched(row) for row in rows)), limits.deadline_s
            )
        except TimeoutError:
            raise HTTPException(
                504, f"not scored within {limits.deadline_s:g} s: the server is busy"
            ) from None
        return {"scores": list(scores), "tokens": [len(row) for row in rows], "model": self.name}

    def _row(
        self,
        field: str,
        messages: list[Message],
        finished: bool,
        tools: list[dict[str, Any]] | None,
    ) -> list[int]:
        """Token ids of a conversation; HTTPException that names its `field` in the request."""
        try:
            turns = [turn_of(message, f"{field}[{i}]") for i, message in enumerate(messages)]
            check_turns(turns, last="assistant", field=field)
            ids = scored(self.template, turns, self.tokenizer, finished, tools_of(tools)).ids
        except (RowError, ValueError) as error:
            raise HTTPException(400, str(error)) from None
        # Refused, not cut: the score is read at the end.
        if len(ids) > self.context_tokens:
            raise HTTPException(
                413, f"{field} has {len(ids)} tokens, more than {self.context_tokens}"
            )
        return ids

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.005)
    async def batched(self, rows: list[list[int]]) -> list[float]:
        """Scores of rows that came about together.

        Serve calls it with a list; callers pass one row and get one score.
        """
        self.scored, self.batches = self.scored + len(rows), self.batches + 1
        # Off the event loop, which goes on to take requests for the next batch.
        return await asyncio.to_thread(self._scores, Ragged.of(rows))

    @torch.no_grad()  # here, since a thread does not inherit it
    def _scores(self, rows: Ragged) -> list[float]:
        scores = [0.0] * len(rows)
        # Micro-batches hold rows of like lengths together, so scores come in another order.
        for micro_batch in self.context.micro_batches(rows.lengths, self.limits.micro_batch_tokens):
            ids_BT, chosen_BT = sequence_inputs(rows.take(micro_batch), self.context.device)
            values = self.module(ids_BT, chosen_BT).tolist()
            for row, value in zip(micro_batch, values, strict=True):
                scores[row] = value
        return scores


def application(folder: str, limits: Limits, replicas: int) -> serve.Application:
    """The Serve application of a reward-model folder."""
    deployment: serve.Deployment = ScoreService  # the decorators have made one of the class
    return deployment.options(
        num_replicas=replicas,
        max_ongoing_requests=limits.max_waiting,
        max_queued_requests=limits.max_waiting,
        ray_actor_options={"num_cpus": 0.1, "num_gpus": limits.gpus},
    ).bind(folder, limits)
