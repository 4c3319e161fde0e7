"""A chat with a published model in the terminal, streamed as it is written."""

from __future__ import annotations

import sys
from typing import Any

from rayward.pipelines.rows.show import visible


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
    opening: list[Any] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
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
            messages = (
                messages + [{"role": "assistant", "content": answer}] if answer else messages[:-1]
            )


def _answer(
    client: Any, model: str, messages: list[Any], temperature: float, max_tokens: int | None
) -> str:
    import openai

    parts: list[str] = []
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=temperature,
            stream=True,
            **({"max_tokens": max_tokens} if max_tokens else {}),
        )
        for chunk in stream:
            text = (chunk.choices[0].delta.content or "") if chunk.choices else ""
            parts.append(text)
            print(visible(text), end="", flush=True)
    except openai.APIStatusError as error:
        print(
            f"\nrayward: the endpoint refused: {error.message} (/new starts over)", file=sys.stderr
        )
    print()
    return "".join(parts).strip()
