"""`rayward data simulate`: conversations between a model that plays the user and an assistant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayward.pipelines.data_tools.feedback import Feedback, FeedbackItem, add_options, outputs

if TYPE_CHECKING:
    from rayward.data.feedback.prompt_files import Prompts
    from rayward.data.feedback.simulation import ConversationSeed
    from rayward.pipelines.data_tools.endpoint import ChatModel


def add(actions: argparse._SubParsersAction) -> None:
    """Declare the command."""
    parser = actions.add_parser(
        "simulate", help="conversations of two models, grown from seeds as in UltraChat"
    )
    parser.add_argument(
        "--seeds",
        type=Path,
        required=True,
        metavar="F",
        help=(
            'rows with a "module" and what it needs: world: "topic" or "entity"; writing: '
            '"writing_type" and "instruction"; materials: "material"; and, if you like, an "id"'
        ),
    )
    add_options(
        parser,
        user={"temperature": 1.0, "max_tokens": 512},
        assistant={"temperature": 0.7, "max_tokens": 1024},
    )
    parser.set_defaults(run_command=_run)


def _run(options: argparse.Namespace) -> int:
    from rayward.data.feedback.prompt_files import digest, load_prompts
    from rayward.data.feedback.simulation import read_seeds
    from rayward.data.formats.files.overwriting import refuse_overwriting
    from rayward.data.records import RowError
    from rayward.pipelines.data_tools.endpoint import models

    targets = [*outputs(options), _provenance_path(options.out)]
    # Of its folder only the texts are read, so data may lie beside them.
    texts = options.prompts.glob("*.txt") if options.prompts else ()
    refuse_overwriting(targets, [options.seeds, *texts])
    prompts = load_prompts(options.prompts)
    items = []
    for line, task in read_seeds(options.seeds):
        seed_id = key = ""
        if not isinstance(task, RowError):
            # By the text, too: a seed that was changed since is another conversation.
            seed_id, key = task.id, f"{task.id}:{task.digest[:16]}"
        where = {"id": seed_id, "file": str(options.seeds), "line": line}
        items.append(FeedbackItem(where, task, key))
    settings = {"prompts": digest(sorted(prompts.items()))}
    with Feedback(options, ("user", "assistant"), **settings) as feedback:
        with models(options, "user", "assistant") as (user, assistant):
            feedback.work(
                items,
                len(items),
                lambda seed: _converse(seed, user, assistant, prompts, options.seed),
            )
        _write(items, user, assistant, feedback)
        return feedback.close([user, assistant])


async def _converse(
    seed: ConversationSeed,
    user: ChatModel,
    assistant: ChatModel,
    prompts: Prompts,
    sampling_seed: int,
) -> dict[str, Any]:
    """Rounds until the drawn number is reached, or the user says thanks and no more, or nothing."""
    from rayward.data.feedback.prompt_files import digest, fill, transcript
    from rayward.data.feedback.simulation import only_thanks, opening, opening_request, without_meta
    from rayward.data.records import RowError, Turn, check_turns

    def draw(part: object) -> int:
        # Of the seed and the place in the conversation, never of what ran before: order and
        # restarts change nothing. 31 bits, so that it is no negative number to any endpoint.
        return int(digest(sampling_seed, seed.digest, part)[:8], 16) >> 1

    async def from_user(request: str) -> str:
        # The model that plays the user reads the conversation in one message, as a transcript: in
        # turns of its own it would go on as the assistant.
        message = {"role": "user", "content": request}
        reply = await user.ask([message], draw(("user", len(turns))))
        return reply.text

    turns: list[Turn] = []
    first_reply = await from_user(opening_request(seed, prompts, sampling_seed))
    turns.append(Turn("user", opening(seed, first_reply, prompts, sampling_seed)))
    instructions = fill(prompts, "assistant")
    system = [{"role": "system", "content": instructions}] if instructions else []
    rounds, ended, cut_answers = seed.rounds(sampling_seed), "rounds", 0
    while True:
        messages = [*system, *({"role": turn.role, "content": turn.content} for turn in turns)]
        answer = await assistant.ask(messages, draw(("assistant", len(turns))))
        if not answer.text.strip():
            raise RowError("reply", answer.text, "an answer of the assistant", "empty answer")
        turns.append(Turn("assistant", answer.text.strip()))
        cut_answers += answer.cut
        if len(turns) == 2 * rounds:
            break
        request = fill(
            prompts, "user", draw(("prompt", len(turns))), conversation=transcript(turns)
        )
        message = without_meta(await from_user(request))
        if not message or only_thanks(message):
            # Not made a turn, so that every conversation ends with an answer.
            ended = "thanks" if message else "silence"
            break
        turns.append(Turn("user", message))
    check_turns(turns, "assistant")
    texts = [turn.content for turn in turns]
    return {"turns": texts, "rounds_drawn": rounds, "ended": ended, "cut_answers": cut_answers}


def _provenance_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.provenance.jsonl")


def _write(
    items: list[FeedbackItem], user: ChatModel, assistant: ChatModel, feedback: Feedback
) -> None:
    """The conversations and, in OUT.provenance.jsonl, where each is from.

    Of conversations with the same opening, that of the first seed is kept, whichever ended first.
    """
    from rayward.data.feedback.simulation import folded
    from rayward.data.formats.files.outputs import open_output
    from rayward.data.formats.writers.table import WRITERS
    from rayward.data.records import Conversation, RowError, Turn

    options, writer = feedback.options, WRITERS["rayward"]
    openings: set[str] = set()
    names = {"user": user.name, "assistant": assistant.name, "sampling_seed": options.seed}
    with open_output(_provenance_path(options.out)) as origins:

        def rows(seed: ConversationSeed, result: dict[str, Any]) -> list[dict[str, Any]]:
            first = folded(result["turns"][0])
            if first in openings:
                raise RowError("turns[0]", result["turns"][0], "a new opening", "duplicate opening")
            openings.add(first)
            kept = {name: result[name] for name in ("rounds_drawn", "ended", "cut_answers")}
            origins.write({"id": seed.id, "module": seed.module, **seed.fields, **names, **kept})
            turns = tuple(
                Turn(("user", "assistant")[n % 2], text) for n, text in enumerate(result["turns"])
            )
            record = Conversation(turns, f"simulated/{seed.module}", seed.id, assistant.name)
            return writer.rows(record, [])

        feedback.write(items, writer.columns, rows)
