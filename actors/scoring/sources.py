"""Sources of reward that are no model of ours: a Python function, a service behind HTTP, a language
model as judge.

Each runs in processes of its own and answers with one number an answer, with None where it has
nothing to say of it, or with the reason (text) for which it could give none. Two errors end a
stage, and say which source it was: SourceUnavailable, the source did not answer, so run the command
again once it does; SourceDataError, it answered something that is no score, so mend the source or
the data.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayward.actors.spans import Timed
from rayward.configs.sections.scoring import RewardSource

Score = float | str | None
RATING = re.compile(  # a line of its own
    r"^[\s*_#>]*rating(?:\s*\(1\s*(?:-|to)\s*10\))?[\s*_]*:"
    r"[\s*_]*(\d+(?:\.\d+)?)[\s*_]*(?:/\s*10|(?:out\s+)?of\s+10)?[\s*_.]*$",
    re.IGNORECASE | re.MULTILINE,
)
BEST_RATING = 10.0
LONGEST_PAUSE_S = 20.0


class SourceUnavailable(ConnectionError):
    """A source of reward did not answer, after all retries."""


class SourceDataError(ValueError):
    """A source of reward gave something that is no score, or refuses what it is asked."""


@dataclass(frozen=True, slots=True)
class ResponseText:
    """An answer as text, with what it answers."""

    messages: list[dict[str, str]]
    answer: str
    reference: str | None
    source: str
    id: str
    finished: bool


class SourceWorker(Timed):
    """A process of a source."""

    def __init__(self, source: RewardSource, folder: str, key: str | None, rank: int):
        super().__init__()
        self.source = source
        self.ask: Callable[[Sequence[ResponseText]], list[Score]]
        if source.kind == "function":
            self.ask = function_source(source, folder)
        else:
            self.ask = {"http": http_source, "judge": judge_source}[source.kind](source, key)

    def score(self, batch: Sequence[ResponseText]) -> list[Score]:
        """What the source says of each answer; empty ones get `empty_answer` where it is set."""
        default = self.source.empty_answer
        asked = [item for item in batch if item.answer.strip() or default is None]
        with self.span("score"):
            scores = iter(self.ask(asked) if asked else [])
        return [
            next(scores) if item.answer.strip() or default is None else default for item in batch
        ]


def function_source(
    source: RewardSource, folder: str
) -> Callable[[Sequence[ResponseText]], list[Score]]:
    """MODULE:FUNCTION, found in `folder` or an installed package and called with keywords.

    prompts: lists of {"role", "content"}; completions: texts; references, sources, finished: one
    each. It returns a number or None for each. What it raises is a SourceDataError.
    """
    if folder not in sys.path:
        sys.path.append(folder)
    module_name, _, name = (source.target or "").partition(":")
    who = f"scoring source {source.title}: {source.target}"
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SourceDataError(f"{who} cannot be imported: {error}") from None

    def ask(batch: Sequence[ResponseText]) -> list[Score]:
        try:
            found = function(
                prompts=[item.messages for item in batch],
                completions=[item.answer for item in batch],
                references=[item.reference for item in batch],
                sources=[item.source for item in batch],
                finished=[item.finished for item in batch],
            )
        except Exception as error:
            raise SourceDataError(
                f"{who} raised {type(error).__name__}: {error}; the batch begins with prompt "
                f"{batch[0].id!r}, answer {batch[0].answer[:80]!r}"
            ) from None
        return checked(found, len(batch), source)

    return ask


def http_source(
    source: RewardSource, key: str | None
) -> Callable[[Sequence[ResponseText]], list[Score]]:
    """A service that scores as `rayward reward-serve` does: {"conversations": [...]} gives
    {"scores": [...]}.

    `finished` beside them says of each whether its answer ended by itself.
    """
    import httpx

    who = f"scoring source {source.title}: {source.target}"
    client = httpx.Client(
        timeout=source.timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {}
    )

    class RetryableError(Exception):
        """A try that failed and may be repeated."""

    def post(body: dict[str, Any]) -> Any:
        try:
            response = client.post(source.target or "", json=body)
        except httpx.TransportError as error:
            raise RetryableError(f"{type(error).__name__}: {error}") from None
        if response.status_code == 429 or response.status_code >= 500:
            raise RetryableError(f"status {response.status_code}: {response.text[:200]}")
        if response.status_code in (401, 403, 404):
            raise SourceUnavailable(
                f"{who} says {response.status_code}: {response.text[:200]}; is the address right, "
                "and the key that the variable `key` names?"
            )
        if response.status_code >= 400:
            raise SourceDataError(
                f"{who} refuses the request with {response.status_code}: {response.text[:300]}"
            )
        try:
            return response.json()
        except ValueError:
            raise SourceDataError(f"{who} answered {response.text[:80]!r}, expected JSON") from None

    def ask(batch: Sequence[ResponseText]) -> list[Score]:
        conversations = [
            [*item.messages, {"role": "assistant", "content": item.answer}] for item in batch
        ]
        for attempt in range(source.retries + 1):
            try:
                found = post(
                    {"conversations": conversations, "finished": [item.finished for item in batch]}
                )
                break
            except RetryableError as error:
                if attempt == source.retries:
                    raise SourceUnavailable(
                        f"{who} did not answer in {attempt + 1} tries: {error}"
                    ) from None
                time.sleep(min(LONGEST_PAUSE_S, 0.25 * 2**attempt))
        if not isinstance(found, dict) or "scores" not in found:
            raise SourceDataError(
                f"{who} answered {str(found)[:80]!r}, expected an object with a list named scores"
            )
        return checked(found["scores"], len(batch), source)

    return ask


def judge_source(
    source: RewardSource, key: str | None
) -> Callable[[Sequence[ResponseText]], list[Score]]:
    """NAME@URL of a language model that rates each answer from 1 to 10; asked again where its reply
    has no rating.
    """
    import openai

    from rayward.data.feedback.prompt_files import digest, fill, load_prompts, transcript
    from rayward.data.records import Turn

    name, _, url = (source.target or "").partition("@")
    prompts = load_prompts(Path(source.prompts) if source.prompts else None)
    client = openai.OpenAI(
        base_url=url,
        api_key=key or "none",
        timeout=source.timeout_s,
        max_retries=source.retries,
    )

    def one(item: ResponseText) -> Score:
        turns = [Turn(message["role"], message["content"]) for message in item.messages]  # type: ignore[arg-type]
        told = {
            "conversation": transcript(turns),
            "answer": item.answer,
            "reference": item.reference or "(none)",
        }
        # An answer cannot name its own hash to leave its frame.
        told["tag"] = digest(*told.values())[:8]
        if not item.finished:
            told["answer"] += (
                f"\n<<< {told['tag']} THE ANSWER WAS CUT HERE, AT THE LIMIT OF TOKENS >>>"
            )
        messages: list[Any] = [
            {"role": "system", "content": fill(prompts, "rate_system")},
            {"role": "user", "content": fill(prompts, "rate_user", **told)},
        ]
        reply = ""
        for attempt in range(source.retries + 1):
            try:
                answer = client.chat.completions.create(
                    model=name, messages=messages, temperature=0.0, seed=attempt
                )
            except (
                openai.APIConnectionError,
                openai.RateLimitError,
                openai.InternalServerError,
            ) as error:
                raise SourceUnavailable(
                    f"scoring source {source.title}: {url} did not answer in {source.retries + 1} "
                    f"tries: {error}"
                ) from None
            except openai.APIStatusError as error:
                kind = (
                    SourceUnavailable if error.status_code in (401, 403, 404) else SourceDataError
                )
                raise kind(
                    f"scoring source {source.title}: {url} refuses {name}: {error.message}"
                ) from None
            reply = (answer.choices[0].message.content or "") if answer.choices else ""
            ratings = [float(number) for number in RATING.findall(reply)]
            if ratings and 1 <= ratings[-1] <= BEST_RATING:
                return ratings[-1]
        return f"the judge said {reply[-80:]!r}, expected a rating from 1 to {BEST_RATING:g}"

    # Requests of one batch go out together: `parallel` of them at a time.
    pool, lock = ThreadPoolExecutor(source.parallel), threading.Lock()

    def ask(batch: Sequence[ResponseText]) -> list[Score]:
        with lock:
            return list(pool.map(one, batch))

    return ask


def checked(found: object, count: int, source: RewardSource) -> list[Score]:
    """The scores that a source returned. SourceDataError where they are not one number (or None)
    for each answer.
    """
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, list | tuple) or len(values) != count:
        said = f"{len(values)} scores" if isinstance(values, list | tuple) else type(found).__name__
        raise SourceDataError(
            f"scoring source {source.title}: got {said}, expected a list of {count} numbers"
        )
    scores: list[Score] = []
    for value in values:
        if value is None:
            scores.append(None)
        elif isinstance(value, bool | int | float) and math.isfinite(value):
            scores.append(float(value))
        else:
            scores.append(f"got {str(value)[:40]!r}, expected a finite number")
    return scores
