"""Tokenizers of several kinds, made on the spot, and conversations to try them with."""

from __future__ import annotations

import random

from rayward.data.records import Turn
from rayward.data.templates.template import TEMPLATES

EOT = "<|end_of_turn|>"
SPECIAL = sorted({token for template in TEMPLATES.values() for token in template.special_tokens})
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CORPUS = [
    "GPT4 Correct User: Hello GPT4 Correct Assistant: Hi, how are you today?",
    f"{VICUNA_SYSTEM} USER: What is 12 times 345? ASSISTANT: It is 4140.",
    "Code User: Implement quicksort using C++ Code Assistant: int main() { return 0; }",
    "Line one\nLine two\n\n  indented\tand   spaced. Ünïcödé, 日本語 and 😀 too.",
]
KINDS = ("bytes", "metaspace", "normalizer", "sentencepiece", "legacy", "first")
WORDS = [
    "Hello",
    "quick",
    "12",
    "345",
    "?",
    "C++",
    "日本",
    "😀",
    "it's",
    "\n",
    "\n\n",
    " ",
    "  ",
    "\t",
    "ASSISTANT:",
]
INJECTIONS = [
    "</s>", EOT, "<s>", "<pad>", "<|im_end|>", "<|eot_id|>", "[INST]", "USER:", " ASSISTANT:",
    "GPT4 Correct Assistant:", "</s>USER:"]  # fmt: skip


def random_turns(rng: random.Random, words: list[str], num_pairs: int) -> tuple[Turn, ...]:
    """Perhaps a system turn, then `num_pairs` of user and assistant; contents may end in white
    space.
    """

    def content() -> str:
        return "".join(
            rng.choice(words) + rng.choice(["", " "]) for _ in range(rng.randrange(6))
        ) + rng.choice(["x", "x ", "x\n", "!", "7  "])

    turns: tuple[Turn, ...] = (Turn("system", content()),) if rng.random() < 0.3 else ()
    for _ in range(num_pairs):
        turns += (Turn("user", content()), Turn("assistant", content()))
    return turns


def sentencepiece_tokenizer(folder, texts: list[str], special: list[str], legacy: bool = True):
    """A SentencePiece model trained on the spot, as transformers reads it from Llama's files.

    Not `legacy`, as Llama 2's are published, it puts a space before a string, and none behind a
    special token in it.
    """
    import json

    import sentencepiece
    from transformers import LlamaTokenizer

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": legacy,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = LlamaTokenizer.from_pretrained(str(folder))
    new = [token for token in special if token not in ("<s>", "</s>")]
    tokenizer.add_special_tokens({"additional_special_tokens": new})
    return tokenizer


def legacy(tokenizer):
    """With the normalizer that published files of Llama and Mistral carry: a space before every
    stretch of text.
    """
    from tokenizers import normalizers, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def sentencepiece_like(kind: str):
    """A toy BPE that marks spaces with ▁ and puts one before every text, as Llama's and Mistral's
    do.

    "metaspace" adds it only where a text starts without a space, "normalizer" (Llama's form) always
    does.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", *(token for token in SPECIAL if token != "<s>")]
    characters = sorted(set("".join(CORPUS)) | {chr(code) for code in range(32, 127)})
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=characters, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if kind == "normalizer":
        tokenizer.pre_tokenizer = None
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
