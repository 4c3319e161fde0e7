"""Sources of reward that are no model of ours: a Python function, a service behind HTTP, a language
model as judge.

Each runs in processes of its own and gives one number an answer, None where it has nothing to say
of it, or the reason (text) for which it could give none. Two errors end a stage, and say which
source it was: SourceUnavailable, the source did not answer, so run the command again once it does;
SourceDataError, it answered something that is no score, so mend the source or the data.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rayward.actors.spans import Timed
from rayward.configs.sections.scoring import RewardSource
from rayward.data.formats.rows.message_parts import messages_of
from rayward.data.records import Turn
from rayward.data.verifiable import needs

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

Score = float | str | None
"""A text is the reason why there is no number. It ends nothing here: the stage counts those, and
`tolerated` of the config says how many there may be.
"""
RATING = re.compile(  # on a line of its own: the reasons before it may hold numbers too
    r"^[\s*_#>]*rating(?:\s*\(1\s*(?:-|to)\s*10\))?[\s*_]*:"
    r"[\s*_]*(\d+(?:\.\d+)?)[\s*_]*(?:/\s*10|(?:out\s+)?of\s+10)?[\s*_.]*$",
    re.IGNORECASE | re.MULTILINE,
)
BEST_RATING = 10.0
LONGEST_PAUSE_S = 20.0  # between two tries of a request
# Of HTTP. These would be the same for any data: what is wrong is the address or the key.
STATUS_OF_SETUP = (401, 403, 404)


class SourceUnavailable(ConnectionError):
    """A source of reward did not answer, after all retries."""


class SourceDataError(ValueError):
    """A source of reward gave something that is no score, or refuses what it is asked."""


@dataclass(frozen=True, slots=True)
class ResponseText:
    """An answer as text, with what it answers. `tools`: as a record has them, JSON text."""

    turns: tuple[Turn, ...]
    answer: str
    reference: str | None
    source: str
    id: str
    finished: bool
    tools: str | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What is answered, as OpenAI messages: with calls, their results and reasoning."""
        return messages_of(self.turns)

    @property
    def schemas(self) -> list[dict[str, Any]] | None:
        """Those of the tools on offer, None where there are none."""
        return json.loads(self.tools) if self.tools else None


Ask = Callable[[Sequence[ResponseText]], list[Score]]
"""How a source is asked: one entry an answer, in their order. Raises the two errors."""


class SourceWorker(Timed):
    """A process of a source."""

    def __init__(self, source: RewardSource, folder: str, key: str | None, rank: int):
        super().__init__()
        self.source = source
        self.ask: Ask
        if source.kind == "function":
            self.ask = function_source(source, folder)
        else:
            self.ask = {"http": http_source, "judge": judge_source}[source.kind](source, key)

    def score(self, batch: Sequence[ResponseText]) -> list[Score]:
        """What the source says of each answer; empty ones get `empty_answer` where it is set."""
        default = self.source.empty_answer
        scorable = [default is None or bool(item.answer.strip()) for item in batch]
        requests = [item for item, wanted in zip(batch, scorable, strict=True) if wanted]
        with self.span("score"):
            scores = iter(self.ask(requests) if requests else [])
        return [next(scores) if wanted else default for wanted in scorable]


def function_source(source: RewardSource, folder: str) -> Ask:
    """MODULE:FUNCTION, found in `folder` or an installed package and called with keywords.

    prompts: lists of OpenAI messages; completions: texts; references, sources, finished: one each;
    tools, where the function takes them: a list of schemas or None each. It returns a number or
    None for each. What it raises is a SourceDataError.
    """
    # At the end: a module of the folder does not take the place of an installed one.
    if folder not in sys.path:
        sys.path.append(folder)
    name = (source.target or "").partition(":")[2]
    who = f"scoring source {source.title}: {source.target}"
    try:
        function = getattr(_imported(source.modules), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SourceDataError(f"{who} cannot be imported: {error}") from None

    try:
        needs.check(source.target or "")
    except RuntimeError as error:
        raise SourceDataError(f"{who} cannot be used: {error}") from None
    takes_tools = _takes_tools(function)

    def ask(batch: Sequence[ResponseText]) -> list[Score]:
        more = {"tools": [item.schemas for item in batch]} if takes_tools else {}
        try:
            result = function(
                prompts=[item.messages for item in batch],
                completions=[item.answer for item in batch],
                references=[item.reference for item in batch],
                sources=[item.source for item in batch],
                finished=[item.finished for item in batch],
                **more,
            )
        except Exception as error:  # whatever the user's code raises
            raise SourceDataError(
                f"{who} raised {type(error).__name__}: {error}; the batch begins with prompt "
                f"{batch[0].id!r}, answer {batch[0].answer[:80]!r}"
            ) from None
        return checked(result, len(batch), source)

    return ask


def _takes_tools(function: Any) -> bool:
    """Whether it has the keyword `tools`; functions written without it go on as they are."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # nothing to call, or nothing written in Python
        return False
    return "tools" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _imported(names: Sequence[str]) -> ModuleType:
    """The first of these modules that there is. ImportError of the first where none is."""
    first, *others = names
    try:
        return importlib.import_module(first)
    except ModuleNotFoundError as error:
        # One that is there and lacks something else is not passed over.
        missing = f"{first}.".startswith(f"{error.name}.")
        for name in others if missing else ():
            with suppress(ModuleNotFoundError):
                return importlib.import_module(name)
        raise


def http_source(source: RewardSource, key: str | None) -> Ask:
    """A service as `rayward reward-serve`: {"conversations": [...]} gives {"scores": [...]}.

    `finished` beside the conversations says of each whether its answer ended by itself, and
    `tools`, where a conversation has any, the schemas of those on offer.
    """
    import httpx
    import tenacity

    who = f"scoring source {source.title}: {source.target}"
    client = httpx.Client(
        timeout=source.timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {}
    )

    class RetryableError(Exception):
        """A try that failed and may be repeated."""

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(RetryableError),
        stop=tenacity.stop_after_attempt(source.retries + 1),
        wait=tenacity.wait_exponential(multiplier=0.25, max=LONGEST_PAUSE_S),
        reraise=True,
    )

    def post(body: dict[str, Any]) -> Any:
        try:
            response = client.post(source.target or "", json=body)
        except httpx.TransportError as error:
            raise RetryableError(f"{type(error).__name__}: {error}") from None
        # Too many requests, or a fault of the server: both may pass.
        if response.status_code == 429 or response.status_code >= 500:
            raise RetryableError(f"status {response.status_code}: {response.text[:200]}")
        if response.status_code in STATUS_OF_SETUP:
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
        body: dict[str, Any] = {
            "conversations": conversations,
            "finished": [item.finished for item in batch],
        }
        if any(item.tools for item in batch):
            body["tools"] = [item.schemas for item in batch]
        try:
            reply = retrying(post, body)
        except RetryableError as error:
            tries = source.retries + 1
            raise SourceUnavailable(f"{who} did not answer in {tries} tries: {error}") from None
        if not isinstance(reply, dict) or "scores" not in reply:
            raise SourceDataError(
                f"{who} answered {str(reply)[:80]!r}, expected an object with a list named scores"
            )
        return checked(reply["scores"], len(batch), source)

    return ask


def judge_source(source: RewardSource, key: str | None) -> Ask:
    """NAME@URL of a language model that rates each answer from 1 to 10.

    It is asked again where its reply has no rating.
    """
    import openai

    from rayward.data.feedback.prompt_files import digest, fill, load_prompts, transcript

    name, _, url = (source.target or "").partition("@")
    prompts = load_prompts(Path(source.prompts) if source.prompts else None)
    client = openai.OpenAI(
        base_url=url,
        api_key=key or "none",  # the client insists on one, local servers do not
        timeout=source.timeout_s,
        max_retries=source.retries,  # of requests; `rate` repeats those whose reply has no rating
    )

    def messages_for(item: ResponseText) -> list[ChatCompletionMessageParam]:
        fields = {
            "conversation": transcript(item.turns, item.tools),
            "answer": item.answer,
            "reference": item.reference or "(none)",
        }
        # An answer cannot name its own hash to leave its frame.
        tag = digest(*fields.values())[:8]
        if not item.finished:
            fields["answer"] += f"\n<<< {tag} THE ANSWER WAS CUT HERE, AT THE LIMIT OF TOKENS >>>"
        return [
            {"role": "system", "content": fill(prompts, "rate_system")},
            {"role": "user", "content": fill(prompts, "rate_user", **fields, tag=tag)},
        ]

    def rate(item: ResponseText) -> Score:
        messages = messages_for(item)
        reply = ""
        for attempt in range(source.retries + 1):
            try:
                # Another seed each time, so that a further try may end otherwise.
                completion = client.chat.completions.create(
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
                setup = error.status_code in STATUS_OF_SETUP
                error_class = SourceUnavailable if setup else SourceDataError
                raise error_class(
                    f"scoring source {source.title}: {url} refuses {name}: {error.message}"
                ) from None
            choices = completion.choices
            reply = (choices[0].message.content or "") if choices else ""
            ratings = [float(number) for number in RATING.findall(reply)]
            # The last one: the prompt asks for reasons before it, which may quote its form.
            if ratings and 1 <= ratings[-1] <= BEST_RATING:
                return ratings[-1]
        return f"the judge said {reply[-80:]!r}, expected a rating from 1 to {BEST_RATING:g}"

    # Requests of one batch go out together, `parallel` of them at a time; the lock lets no other
    # batch in between them.
    pool, lock = ThreadPoolExecutor(source.parallel), threading.Lock()

    def ask(batch: Sequence[ResponseText]) -> list[Score]:
        with lock:
            return list(pool.map(rate, batch))

    return ask


def checked(result: object, count: int, source: RewardSource) -> list[Score]:
    """The scores that a source returned, with a reason in place of a value that is no number.

    SourceDataError where it is no list of `count` entries.
    """
    values = result.tolist() if hasattr(result, "tolist") else result  # arrays and tensors
    received = type(result).__name__
    if isinstance(values, list | tuple):
        received = f"{len(values)} scores"
    if not isinstance(values, list | tuple) or len(values) != count:
        raise SourceDataError(
            f"scoring source {source.title}: got {received}, expected a list of {count} numbers"
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
