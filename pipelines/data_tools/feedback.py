"""What `rayward data simulate` and `rayward data rank` share: options, work kept as it is done.

What is made of an item is a line of OUT.partial.jsonl, on the disk before the next item starts, so
that a killed run loses what was under way and nothing else. The output is made from this file at
the end, in the order of the input.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.data.formats.files.containers import SUFFIXES
from rayward.data.records import RowError
from rayward.pipelines.data_tools.ledger import Ledger

if TYPE_CHECKING:
    from rayward.pipelines.data_tools.endpoint import ChatModel


def add_options(parser: argparse.ArgumentParser, **requests: dict[str, Any]) -> None:
    """Declare the options of a run and of each role's model. `requests`: default fields by role."""
    parser.add_argument(
        "--out", type=Path, required=True, help="what is set aside goes to OUT.rejected.jsonl"
    )
    parser.add_argument("--report", type=Path, metavar="R.json", help="write the account there")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is drawn (default 0)"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="DIR",
        help="prompts in place of those in data/feedback/prompts",
    )
    add_models(parser, requests)


def add_models(
    parser: argparse.ArgumentParser,
    requests: Mapping[str, dict[str, Any]],
    concurrency: int = 16,
    kinds: str = "NAME@http://HOST:PORT/v1, or a folder, which vLLM serves",
) -> None:
    """Declare the options of each role's model. `requests`: default fields by role.

    `kinds`: what the model may be; "" where the model itself is declared elsewhere.
    """
    for role, request in requests.items():
        # The default binds this role's fields: options are read after the loop.
        def json_fields(text: str, request: dict[str, Any] = request) -> dict[str, Any]:
            return request | json.loads(text)

        add = parser.add_argument_group(f"the {role}").add_argument
        if kinds:
            add(f"--{role}", required=True, metavar="M", help=kinds)
        add(
            f"--{role}-key",
            default="OPENAI_API_KEY",
            metavar="VAR",
            help=(
                "environment variable of its API key, which need not be set (default "
                "OPENAI_API_KEY)"
            ),
        )
        add(
            f"--{role}-price",
            type=float,
            nargs=2,
            default=(0.0, 0.0),
            metavar=("IN", "OUT"),
            help="price of a million tokens of prompts, and of replies (default 0 0)",
        )
        add(
            f"--{role}-request",
            type=json_fields,
            default=request,
            metavar="JSON",
            help=(
                f"fields of each request, over {json.dumps(request)}; null leaves one out, as in "
                f'{{"seed": null}}'
            ),
        )
    add = parser.add_argument_group("every model").add_argument
    add(
        "--concurrency",
        type=int,
        default=concurrency,
        metavar="N",
        help=f"items at a time (default {concurrency})",
    )
    add("--requests-per-minute", type=float, metavar="N", help="to each model (default: no limit)")
    add(
        "--retries", type=int, default=6, metavar="N", help="further tries of a request (default 6)"
    )
    add("--timeout", type=float, default=300.0, metavar="S", help="seconds for a try (default 300)")
    add_serving(add)


def add_serving(add: Callable[..., Any], context_tokens: int = 8192) -> None:
    """Declare how a folder is served. `add`: of a parser or of a group of its options."""
    add(
        "--context-tokens",
        type=int,
        default=context_tokens,
        metavar="N",
        help=f"context of a served folder (default {context_tokens})",
    )
    add(
        "--start-timeout",
        type=float,
        default=900.0,
        metavar="S",
        help="until a folder is served (default 900)",
    )
    add("--vllm", default="", metavar="ARGS", help='more arguments of "vllm serve" for a folder')


def check_models(options: argparse.Namespace) -> None:
    """ValueError where an option of `add_models` is out of range."""
    if options.concurrency < 1 or options.retries < 0 or options.timeout <= 0:
        raise ValueError(
            "--concurrency must be at least 1, --retries at least 0 and --timeout more than 0"
        )


def outputs(options: argparse.Namespace) -> list[Path | None]:
    """The files that a run writes; None for one that is not asked for."""
    from rayward.data.formats.convert import rejected_path

    out = options.out
    return [out, rejected_path(out), _partial_path(out), options.report]


def _partial_path(out: Path) -> Path:
    return out.with_name(out.name.removesuffix(".jsonl") + ".partial.jsonl")


@dataclass(frozen=True, slots=True)
class FeedbackItem:
    """A piece of the input: where it is from, and a task, or a RowError if there is none.

    `key`: its name in the file of finished work; tasks that differ need keys that differ.
    """

    where: dict[str, Any]
    task: Any
    key: str = ""


class Feedback:
    """One run of a command: its ledger, what got no answer, and the account of the items."""

    def __init__(self, options: argparse.Namespace, roles: Iterable[str], **settings: Any) -> None:
        """`settings`: what decides the result, beside the seed, the models and their requests."""
        from rayward.pipelines.data_tools.endpoint import model_name

        check_models(options)
        values = vars(options)
        settings |= {role: model_name(values[role]) for role in roles} | {"seed": options.seed}
        settings |= {f"{role}-request": values[f"{role}_request"] for role in roles}
        if not options.out.name.endswith(SUFFIXES):
            raise ValueError(f"{options.out}: the name must end in one of {', '.join(SUFFIXES)}")
        partial = _partial_path(options.out)
        # Both are there after a run that got no reply to some requests: it goes on.
        if options.out.exists() and not partial.exists():
            raise ValueError(f"{options.out} is there already; delete it, or give another --out")
        self.options, self.started_at = options, time.perf_counter()
        self.ledger = Ledger(partial, settings)
        self.done_before = len(self.ledger.places)
        self.unanswered: dict[str, str] = {}  # why, by key
        self.read, self.written, self.rejected = 0, 0, Counter[str]()

    def __enter__(self) -> Feedback:
        return self

    def __exit__(self, *_: object) -> None:
        self.ledger.file.close()

    def work(
        self,
        items: Iterable[FeedbackItem],
        total: int,
        do: Callable[[Any], Awaitable[dict[str, Any]]],
    ) -> None:
        """`do` the tasks that are not done, `--concurrency` at a time; keep what it returns.

        A RowError is kept as the item's "error"; an item without answer is not kept. Other
        exceptions end the run.
        """
        from rayward.pipelines.data_tools.at_once import at_once

        async def one(item: FeedbackItem) -> None:
            if not isinstance(item.task, RowError) and item.key not in self.ledger.places:
                await self._one(item, do)

        at_once(items, total, self.options.concurrency, one)

    async def _one(
        self, item: FeedbackItem, do: Callable[[Any], Awaitable[dict[str, Any]]]
    ) -> None:
        from rayward.pipelines.data_tools.endpoint import NoReplyError

        try:
            self.ledger.add(item.key, await do(item.task))
        except NoReplyError as error:
            # Not in the ledger, so that the next run asks for it again.
            self.unanswered[item.key] = str(error)
        except RowError as error:
            # A result, too: the same request would be refused again.
            refusal = (error.field, error.found, error.expected, error.reason)
            self.ledger.add(item.key, {"error": refusal})

    def write(
        self,
        items: Iterable[FeedbackItem],
        columns: dict[str, Any],
        make: Callable[[Any, dict[str, Any]], Any],
    ) -> None:
        """Write the rows that `make` gives for each task and its result, in order.

        An item whose task, result or `make` is a RowError goes to OUT.rejected.jsonl.
        """
        from rayward.data.formats.convert import rejected_path
        from rayward.data.formats.files.outputs import open_output

        out = self.options.out
        with (
            open_output(out, columns) as kept,
            open_output(rejected_path(out)) as rejected,
        ):
            for item in items:
                self.read += 1
                try:
                    rows = make(item.task, self._result(item))
                except RowError as error:
                    self.rejected[error.reason] += 1
                    names = {
                        name: getattr(error, name)
                        for name in ("field", "found", "expected", "reason")
                    }
                    rejected.write(item.where | names)
                    continue
                self.written += 1
                for row in rows:
                    kept.write(row)

    def _result(self, item: FeedbackItem) -> dict[str, Any]:
        if isinstance(item.task, RowError):
            raise item.task
        if item.key in self.unanswered:
            raise RowError("reply", "nothing", "a reply", f"no answer: {self.unanswered[item.key]}")
        result = self.ledger.get(item.key)
        if "error" in result:
            raise RowError(*result["error"])
        return result

    def close(self, models: list[ChatModel], **more: dict[str, Any]) -> int:
        """Print and write the account; the status: 1 if something can be asked for again.

        Requests, tokens and cost are those of this run, without what an earlier one had done.
        """
        from rayward.pipelines.run.files import write_json
        from rayward.pipelines.run.metrics import table

        if self.read != self.written + self.rejected.total():
            raise AssertionError(
                f"{self.read} read, {self.written} written, {self.rejected}: not all accounted for"
            )
        counts = {model.role: model.counts() for model in models}
        seconds = round(time.perf_counter() - self.started_at, 3)
        account = {"read": self.read, "written": self.written, "done_before": self.done_before}
        if self.options.report:
            report = account | {"rejected": dict(self.rejected), **more}
            write_json(self.options.report, report | {"models": counts, "seconds": seconds})
        rows: list[tuple] = [
            *account.items(),
            *((f"rejected: {name}", n) for name, n in self.rejected.items()),
        ]
        groups = {**more, **counts}.items()
        rows += [
            (f"{group}: {name}", value)
            for group, values in groups
            for name, value in values.items()
        ]
        print(self.options.out)
        table("", [*rows, ("seconds", seconds)])
        if self.unanswered:
            print(
                f"{len(self.unanswered)} got no answer; run the same command again to ask for "
                "them again"
            )
            return 1  # the file of finished work stays, for the run that asks again
        self.ledger.path.unlink()
        return 0
