"""Talks with a model about the questions of a suite: each turn is asked when the one before is
answered.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rayward.data.judging.suites import sampling
from rayward.data.judging.thinking import without_thinking
from rayward.data.records import RowError, Turn
from rayward.pipelines.judging.asking.budget import Request

if TYPE_CHECKING:
    from rayward.data.judging.questions import Question
    from rayward.data.judging.suites import Suite
    from rayward.pipelines.judging.asking.asking import Asking
    from rayward.pipelines.rows.renderer import Renderer


@dataclass
class Talk:
    """A question with what a model has answered so far."""

    question: Question
    answers: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    time: float = 0.0
    why: str = ""  # it goes no further

    def messages(self, system: str | None) -> list[dict[str, str]]:
        """The conversation up to the turn that is to be answered."""
        said: list[dict[str, str]] = []
        if system or self.question.system:
            said.append({"role": "system", "content": system or self.question.system})
        for turn in range(len(self.answers) + 1):
            said.append({"role": "user", "content": self.question.turns[turn]})
            if turn < len(self.answers):
                said.append({"role": "assistant", "content": self.answers[turn]})
        return said


class Talking:
    """Talks with one model about the questions of a suite."""

    def __init__(
        self,
        options: argparse.Namespace,
        asking: Asking,
        suite: Suite,
        renderer: Renderer | None,
    ) -> None:
        self.options, self.asking, self.suite, self.renderer = options, asking, suite, renderer
        self.requests: list[Request] = []

    def go_on(self, talk: Talk) -> bool:
        """Take what the cache has; whether the talk is over, for better or worse."""
        while request := self._next(talk):
            reply = self.asking.use(request)
            if reply is None:
                return False
            self._add(talk, request, reply)
        return True

    async def finish(self, talk: Talk) -> None:
        """Ask until the last turn is answered, or one is not."""
        while request := self._next(talk):
            reply = await self.asking.get(request)
            if reply is None:
                talk.why = "no reply"
                self.requests.append(request)
                return
            self._add(talk, request, reply)

    def _add(self, talk: Talk, request: Request, reply: dict[str, Any]) -> None:
        answer, thought = without_thinking(reply["text"])
        talk.answers.append(answer)
        talk.thoughts.append(reply.get("reasoning") or thought)
        talk.cut.append(reply["cut"])
        talk.keys.append(self.asking.key(request))
        talk.time = reply["time"]
        self.requests.append(request)

    def _next(self, talk: Talk) -> Request | None:
        """The request for the next answer; None where all are there, or there is no room."""
        options, turn = self.options, len(talk.answers)
        if talk.why or turn >= len(talk.question.turns[: self.suite.turns]):
            return None
        by_category = options.suite in ("mt_bench", "vicuna")
        # What the user says of all requests goes before what a category or a question says.
        fields = {**sampling(self.suite, talk.question, by_category), **options.model_request}
        messages = talk.messages(options.system)
        place = {"question_id": talk.question.id, "turn": turn + 1}
        if self.renderer is None:
            return Request(messages, place, fields=fields)
        try:
            ids = self.renderer.prompt([Turn(m["role"], m["content"]) for m in messages])  # type: ignore[arg-type]
        except RowError as error:
            talk.why = f"its chat template cannot render it: {error}"
            return None
        room = self.renderer.context_tokens - len(ids)
        if room < 1:
            talk.why = f"turn {turn + 1} has {len(ids)} tokens, of {self.renderer.context_tokens}"
            return None
        if fields.get("max_tokens"):
            fields["max_tokens"] = min(fields["max_tokens"], room)
        stop = {"stop_token_ids": self.renderer.stop_token_ids}
        return Request(ids, place, fields=stop | fields)
