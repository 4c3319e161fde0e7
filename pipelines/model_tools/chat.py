"""A chat with a published model in the terminal, streamed as it is written."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rayward.pipelines.rows.show import visible

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletionMessageParam


def chat(
    url: str, model: str | None, system: str | None, temperature: float, max_tokens: int | None
) -> int:
    """Read lines, print answers, keep the conversation; /new starts over, end of input leaves."""
    import openai

    client = openai.OpenAI(base_url=url.rstrip("/"), api_key="none")
    try:
        model = model or next(iter(client.models.list())).id
    except openai.APIConnectionError:
        print(
            f"rayward: nothing answers at {url}; is the model published? (rayward publish CONFIG "
            "--keep)",
            file=sys.stderr,
        )
        return 1
    opening: list[ChatCompletionMessageParam] = []
    if system:
        opening.append({"role": "system", "content": system})
    messages = list(opening)
    # Of questions from a pipe, the output is the answers alone.
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{model} at {url}; /new starts over, Ctrl-D leaves")
    while True:
        try:
            line = input("you> " if terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return 0
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            answer = _answer(client, model, messages, temperature, max_tokens)
            if answer:
                messages.append({"role": "assistant", "content": answer})
            else:
                # A refused question must not be sent again with the next one.
                messages.pop()


def _answer(
    client: OpenAI,
    model: str,
    messages: list[ChatCompletionMessageParam],
    temperature: float,
    max_tokens: int | None,
) -> str:
    """Print the answer as it comes; its text, "" where the endpoint refuses or nothing comes."""
    import openai

    parts: list[str] = []
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=temperature,
            stream=True,
            max_tokens=max_tokens or openai.omit,
        )
        for chunk in stream:
            # A chunk of usage alone has no choices, one of the role alone has no content.
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            parts.append(text)
            print(visible(text), end="", flush=True)
    except openai.APIStatusError as error:
        print(
            f"\nrayward: the endpoint refused: {error.message} (/new starts over)", file=sys.stderr
        )
    print()
    return "".join(parts).strip()
