"""The chat templates: what stands around each turn, byte for byte. How they are used is in `data.templates`.

Sources: Vicuna v1.1 of FastChat (Xwin-LM uses it); OpenChat v1 to 3.6 of openchat's `ochat/config` (Starling-LM
uses 3.5); UltraLM of UltraChat's `train/ultrachat_dataset.py`; Alpaca of stanford_alpaca's `train.py`; Llama-2 chat
of Meta's `llama`; ChatML. BOS is no part of the strings, except where Llama-2 repeats it.

Choices that the sources leave open: OpenChat v1 had no system message; here it is a masked turn, as in all later
versions. Alpaca had one question; here a further one follows after a blank line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from data.records import Role

EOT = "<|end_of_turn|>"
INPUT = "\n\n### Input:\n"


class Frame(NamedTuple):
    """What stands around a turn: `before`, then `lead` + the content as one piece, then `after`.

    `before` and `after` are the template's own text and may hold special tokens. What precedes the end token in
    `after` is one piece with the content.
    """

    before: str
    lead: str
    after: str


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template. `default_system` stands in where the conversation has no system turn; `input_system`, if any,
    where its first question has an input after `INPUT`, as Alpaca's.

    `special_tokens` are those that the tokenizer must have. The first ends an answer, so it stands in
    `assistant.after`. BOS is used where a tokenizer has one, unless `bos` is False.
    `head` opens every conversation. `between_pairs` stands between an answer and the next question.
    `folds_system`: the framed system message is the beginning of the first question.
    `condition`: the words in its frames that name the class of the answer, empty where it has none (C-RLFT).
    """

    name: str
    system: Frame
    user: Frame
    assistant: Frame
    special_tokens: tuple[str, ...]
    default_system: str = ""
    input_system: str = ""
    head: str = ""
    between_pairs: str = ""
    folds_system: bool = False
    bos: bool = True
    condition: str = ""

    @property
    def end_token(self) -> str:
        """The special token that ends an answer."""
        return self.special_tokens[0]

    @property
    def own(self) -> bool:
        """Whether it only stands for the chat template that the tokenizer brings (see `data.own_template`)."""
        return not self.special_tokens

    def frame(self, role: Role) -> Frame:
        """The frame of `role`."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


def _openchat(name: str, user: str, assistant: str, lead: str = "", *, head: str = "", condition: str = "") -> Template:
    return Template(
        name,
        system=Frame("", "", EOT),
        user=Frame(user, lead, EOT),
        assistant=Frame(assistant, lead, EOT),
        special_tokens=(EOT,),
        head=head,
        bos=name != "opencoder",
        condition=condition,
    )


def _openchat_35(name: str, condition: str) -> Template:
    return _openchat(name, f"{condition} User:", f"{condition} Assistant:", " ", condition=condition)


def _llama_3(role: str) -> Frame:
    return Frame(f"<|start_header_id|>{role}<|end_header_id|>", "\n\n", "<|eot_id|>")


def _chatml(role: str) -> Frame:
    return Frame(f"<|im_start|>{role}\n", "", "<|im_end|>\n")


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        Template(
            "vicuna_v1.1",
            system=Frame("", "", " "),
            user=Frame("USER:", " ", " "),
            assistant=Frame("ASSISTANT:", " ", "</s>"),
            special_tokens=("</s>",),
            default_system=(
                "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
                "helpful, detailed, and polite answers to the user's questions."
            ),
        ),
        _openchat_35("openchat_3.5", "GPT4 Correct"),
        _openchat_35("openchat_3.5_code", "Code"),
        _openchat_35("openchat_3.5_math", "Math Correct"),
        _openchat("openchat_v1", "Human: ", "Assistant: "),
        _openchat("opencoder", "User:", "Assistant:"),
        _openchat("openchat_v2", "User:", "Assistant GPT4:", condition="GPT4"),
        _openchat("openchat_v3.1", "User:", "Assistant:", head=f"Assistant is GPT4{EOT}", condition="GPT4"),
        _openchat("openchat_v3.2", "GPT4 User:", "GPT4 Assistant:", condition="GPT4"),
        Template(
            "openchat_3.6",
            system=_llama_3("System"),
            user=_llama_3("GPT4 Correct User"),
            assistant=Frame("<|start_header_id|>GPT4 Correct Assistant<|end_header_id|>\n\n", "", "<|eot_id|>"),
            special_tokens=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
            condition="GPT4 Correct",
        ),
        Template(
            "ultralm",
            system=Frame("User:", " ", "</s>\n"),
            user=Frame("User:", " ", "</s>\n"),
            assistant=Frame("Assistant: ", "", "</s>"),
            special_tokens=("</s>",),
            between_pairs="\n",
        ),
        Template(
            "alpaca",
            system=Frame("", "", "\n\n"),
            user=Frame("### Instruction:\n", "", "\n\n"),
            assistant=Frame("### Response:", "", "</s>"),
            special_tokens=("</s>",),
            default_system=(
                "Below is an instruction that describes a task. "
                "Write a response that appropriately completes the request."
            ),
            input_system=(
                "Below is an instruction that describes a task, paired with an input that provides further context. "
                "Write a response that appropriately completes the request."
            ),
            between_pairs="\n\n",
        ),
        Template(
            "llama2",
            system=Frame("<<SYS>>\n", "", "\n<</SYS>>\n\n"),
            user=Frame("[INST]", " ", " [/INST]"),
            assistant=Frame("", " ", " </s>"),
            special_tokens=("</s>", "<s>"),
            between_pairs="<s>",
            folds_system=True,
        ),
        Template(
            "chatml",
            system=_chatml("system"),
            user=_chatml("user"),
            assistant=_chatml("assistant"),
            special_tokens=("<|im_end|>", "<|im_start|>"),
        ),
        Template(
            "tokenizer",
            system=Frame("", "", ""),
            user=Frame("", "", ""),
            assistant=Frame("", "", ""),
            special_tokens=(),
            bos=False,
        ),
    )
}


def find(name: str) -> Template:
    """The template `name`. ValueError lists the known ones."""
    if name not in TEMPLATES:
        raise ValueError(f"unknown chat template {name!r}; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
