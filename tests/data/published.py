"""Chat templates that do what those of published models do, without tools and pictures, in words of
our own.
"""

from __future__ import annotations


def _form(lines: str) -> str:
    return "".join(line.strip() for line in lines.splitlines())


_TURN = r"{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"

CHATML = _form(r"""
    {% for m in messages %}
    {% if loop.first and m.role != 'system' %}
    {{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}
    TURN
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""").replace(
    "TURN", _TURN
)
"""SmolLM2, Qwen2.5: a system text of its own."""

EARLY = CHATML.replace(
    _TURN,
    _form(r"""
    {% if m.role == 'assistant' %}
    {{ '<|im_start|>assistant' }}
    {% generation %}{{ '\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}
    {% else %}TURN{% endif %}""").replace("TURN", _TURN),
)
"""The same with a mask that begins a newline before the answer is asked for, and ends one after
it.
"""

HEADERS = _form(r"""
    {{ bos_token }}{% for m in messages %}
    {{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
    {% endfor %}
    {% if add_generation_prompt %}
    {{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""")
"""Llama 3: trims."""

STRICT = _form(r"""
    {{ bos_token }}
    {% if messages[0].role == 'system' %}
    {{ raise_exception('System role not supported') }}{% endif %}
    {% for m in messages %}
    {% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('roles must alternate') }}{% endif %}
    {{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role)
    + '\n' + m.content | trim + '<|im_end|>\n' }}
    {% endfor %}
    {% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}""")
"""Gemma: no system role, and roles must alternate."""

INST = _form(r"""
    {% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' }}
    {% if loop.index0 == 1 and messages[0].role == 'system' %}
    {{ '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' }}{% endif %}
    {{ m.content | trim + ' [/INST]' }}
    {% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}
    {% endfor %}""")
"""Llama 2: no special token before an answer, BOS before every question."""

THINKING = _form(r"""
    {% set ns = namespace(last=-1) %}
    {% for m in messages %}
    {% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
    {% for m in messages %}{% set said = m.content %}{% set thought = '' %}
    {% if m.role == 'assistant' and '</think>' in said %}
    {% set thought = said.split('</think>')[0].split('<think>')[-1] %}
    {% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}
    {{ '<|im_start|>' + m.role + '\n' }}
    {% if m.role == 'assistant' and loop.index0 > ns.last %}
    {{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
    {% else %}{{ said }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""")
"""Qwen3: the last answer has a place for its reasoning, earlier ones lose theirs."""

CHANNELS = _form(r"""
    {{ '<|im_start|>system<|start_header_id|>Today: ' + strftime_now('%Y-%m-%d') + '<|im_end|>' }}
    {% for m in messages %}{% if m.role == 'assistant' %}
    {{ '<|im_start|>assistant<|end_header_id|>final<|start_header_id|>' + m.content }}
    {{ '<|eot_id|>' if loop.last and not add_generation_prompt else '<|im_end|>' }}
    {% else %}{{ '<|im_start|>' + m.role + '<|start_header_id|>' + m.content + '<|im_end|>' }}
    {% endif %}{% endfor %}
    {% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}""")
"""gpt-oss: special tokens between the prompt and the answer, the last answer ends otherwise than
others, the date.
"""

AFTERWORD = _form(r"""
    {% for m in messages %}TURN{% endfor %}
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
    {% else %}{{ eos_token }}{% endif %}
    """).replace("TURN", _TURN)
"""Phi 3: a token of the end after the last turn."""

PREFILLED = CHATML.replace(
    r"{{ '<|im_start|>assistant\n' }}", r"{{ '<|im_start|>assistant\n<think>\n' }}"
)
"""DeepSeek R1's small ones: asks for an answer within its reasoning, and writes none."""

ENDLESS = _form(r"""
    {% for m in messages %}{{ m.role + ': ' + m.content }}
    {{ '</s>' if loop.last and m.role == 'assistant' }}{% endfor %}
    {{ 'assistant: ' if add_generation_prompt }}""")
"""One whose earlier answers end with nothing."""

_CALL = "{{ '<call>' + c.function | tojson + '</call>' }}"
_RESULT = "'<result>' + m.content + '</result>'"

TOOLED = _form(r"""
    {% if tools %}{{ '<|im_start|>system\nTools:' }}
    {% for t in tools %}{{ '\n' + t | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}
    {% for m in messages %}
    {% if m.role == 'tool' %}{{ '<|im_start|>user\n' + RESULT + '<|im_end|>\n' }}{% else %}
    {{ '<|im_start|>' + m.role + '\n' }}
    {% if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}
    {{ m.content }}
    {% for c in m.tool_calls or [] %}CALL{% endfor %}
    {{ '<|im_end|>' }}{{ '\n' }}{% endif %}{% endfor %}
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""")
"""Qwen 2.5 and 3, in short: tools, calls, results, and the reasoning of all turns."""


def tooled(call: str = _CALL, result: str = _RESULT, end: str = "'<|im_end|>'") -> str:
    """TOOLED with another way of writing a call, a result, or the end of an answer."""
    form = TOOLED.replace("{{ '<|im_end|>' }}{{ '\\n' }}", "{{ " + end + " }}{{ '\\n' }}")
    return form.replace("CALL", call).replace("RESULT", result)


WITH_TOOLS = {
    "plain": tooled(),
    # Llama 3 writes results as JSON text.
    "quoted": tooled(result="m.content | tojson"),
    # DeepSeek V3: arguments must be text, and special tokens stand around calls.
    "text": tooled(
        "{{ '<|start_header_id|>' + c.function.name + ' ' + c.function.arguments "
        "+ '<|end_header_id|>' }}"
    ),
    # Qwen3-Coder: an element for each argument.
    "elements": tooled(
        "{{ '<call ' + c.function.name + '>' }}{% for k, v in c.function.arguments.items() %}"
        "{{ '<' + k + '>' ~ v ~ '</' + k + '>' }}{% endfor %}"
    ),
    # gpt-oss: what calls a tool ends otherwise than what is said to the user.
    "handed": tooled(end="'<|eot_id|>' if m.tool_calls else '<|im_end|>'"),
}

PUBLISHED = {
    "chatml": CHATML,
    "early": EARLY,
    "headers": HEADERS,
    "strict": STRICT,
    "inst": INST,
    "thinking": THINKING,
    "channels": CHANNELS,
    "afterword": AFTERWORD,
}
ENDS = {
    "chatml": "<|im_end|>",
    "early": "<|im_end|>",
    "headers": "<|eot_id|>",
    "strict": "<|im_end|>",
    "inst": "</s>",
    "thinking": "<|im_end|>",
    "channels": "<|eot_id|>",
    "afterword": "<|im_end|>",
}
