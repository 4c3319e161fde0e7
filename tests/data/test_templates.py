"""Chat templates: published strings, masks, injection, and what holds for every template and
tokenizer.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rayward.data.records import RowError, Turn
from rayward.data.templates.jinja import jinja
from rayward.data.templates.pieces import pieces, text
from rayward.data.templates.table import INPUT
from rayward.data.templates.template import (
    TEMPLATES,
    Encoded,
    Frame,
    Piece,
    Template,
    encode,
    find,
    stop_token_ids,
    truncate,
)
from rayward.data.templates.tokenizer import train_tokenizer
from tests.data.kinds import (
    CORPUS,
    EOT,
    INJECTIONS,
    KINDS,
    SPECIAL,
    VICUNA_SYSTEM,
    WORDS,
    random_turns,
)

TABLE = {name: template for name, template in TEMPLATES.items() if not template.is_tokenizers}
# What stands before the content ends in white space of its own: pieces are not what one string
# would be cut into.
PIECEWISE = ("openchat_v1", "ultralm", "openchat_3.6")
VICUNA, OPENCHAT = find("vicuna_v1.1"), find("openchat_3.5")
HELLO = (Turn("user", "Hello"), Turn("assistant", "Hi"), Turn("user", "How are you today?"))


def user(content: str) -> Turn:
    return Turn("user", content)


def assistant(content: str, weight: float | None = None) -> Turn:
    return Turn("assistant", content, weight)


# ---- published strings
# -------------------------------------------------------------------------------------


def test_vicuna_strings():
    turns = (
        user("Hello, can you help me?"),
        assistant("Sure!"),
        user("What is 1+1?"),
        assistant("2."),
    )
    head = f"{VICUNA_SYSTEM} USER: Hello, can you help me? ASSISTANT:"
    assert text(VICUNA, turns[:1], True) == head
    assert text(VICUNA, turns[:2]) == f"{head} Sure!</s>"
    assert text(VICUNA, turns[:3], True) == f"{head} Sure!</s>USER: What is 1+1? ASSISTANT:"
    assert text(VICUNA, turns) == f"{head} Sure!</s>USER: What is 1+1? ASSISTANT: 2.</s>"
    given = (Turn("system", "Be brief."), *turns[:2])
    assert text(VICUNA, given) == "Be brief. USER: Hello, can you help me? ASSISTANT: Sure!</s>"


def test_openchat_strings():
    assert (
        text(OPENCHAT, HELLO[:1], True) == f"GPT4 Correct User: Hello{EOT}GPT4 Correct Assistant:"
    )
    assert text(OPENCHAT, HELLO, True) == (
        f"GPT4 Correct User: Hello{EOT}GPT4 Correct Assistant: Hi{EOT}"
        f"GPT4 Correct User: How are you today?{EOT}GPT4 Correct Assistant:"
    )
    assert (
        text(OPENCHAT, HELLO[:2]) == f"GPT4 Correct User: Hello{EOT}GPT4 Correct Assistant: Hi{EOT}"
    )
    assert text(OPENCHAT, (Turn("system", "You are a helpful assistant."), user("Hi")), True) == (
        f"You are a helpful assistant.{EOT}GPT4 Correct User: Hi{EOT}GPT4 Correct Assistant:"
    )
    question = (user("Implement quicksort using C++"),)
    assert text(find("openchat_3.5_code"), question, True) == (
        f"Code User: Implement quicksort using C++{EOT}Code Assistant:"
    )


def test_pieces_end_at_the_colon_and_content_starts_with_the_space():
    assert pieces(OPENCHAT, HELLO[:2]) == [
        Piece("GPT4 Correct User:", False, 0.0),
        Piece(" Hello", False, 0.0),
        Piece(EOT, True, 0.0),
        Piece("GPT4 Correct Assistant:", False, 0.0),
        Piece(" Hi", False, 1.0),
        Piece(EOT, True, 1.0),
    ]
    assert pieces(VICUNA, HELLO, True) == [
        Piece(VICUNA_SYSTEM, False, 0.0),
        Piece(" USER:", False, 0.0),
        Piece(" Hello", False, 0.0),
        Piece(" ASSISTANT:", False, 0.0),
        Piece(" Hi", False, 1.0),
        Piece("</s>", True, 1.0),
        Piece("USER:", False, 0.0),
        Piece(" How are you today?", False, 0.0),
        Piece(" ASSISTANT:", False, 0.0),
    ]


def test_pieces_of_a_mistral_like_vocabulary_match_the_published_ids():
    """The ids on Starling's card stand for these pieces: ▁ before content and after special
    tokens.
    """
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = (
        "▁G PT 4 ▁Cor rect ▁User : ▁Hello ▁Assistant ▁Hi ▁How ▁are ▁you ▁today ? ▁Code "
        "▁Implement ▁quick sort"
    )
    vocabulary = ["<unk>", "<s>", EOT, *words.split(), "▁using", "▁C", "++", "▁"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in vocabulary], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<s>", EOT])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")

    def tokens(template: Template, turns: tuple[Turn, ...]) -> str:
        return " ".join(fast.convert_ids_to_tokens(encode(template, turns, fast, True).ids))

    asked, answering = "▁G PT 4 ▁Cor rect ▁User :", "▁G PT 4 ▁Cor rect ▁Assistant :"
    assert tokens(OPENCHAT, HELLO[:1]) == f"<s> {asked} ▁Hello {EOT} {answering}"
    assert tokens(OPENCHAT, HELLO) == (
        f"<s> {asked} ▁Hello {EOT} {answering} ▁Hi {EOT} {asked} ▁How ▁are ▁you ▁today ? {EOT} "
        f"{answering}"
    )
    assert tokens(find("openchat_3.5_code"), (user("Implement quicksort using C++"),)) == (
        f"<s> ▁Code ▁User : ▁Implement ▁quick sort ▁using ▁C ++ {EOT} ▁Code ▁Assistant :"
    )


# ---- weights
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_weight_is_on_answers_and_their_end_tokens_only(template, kind, tokenizers):
    tokenizer = tokenizers[kind]
    turns = (
        user("Hello you"),
        assistant("Hi, how are you"),
        user("What is today"),
        assistant("It is 12"),
    )
    encoded = encode(template, turns, tokenizer)
    runs, before = [], 0.0
    for token_id, weight in zip(encoded.ids, encoded.weights, strict=True):
        assert weight in (0.0, 1.0)
        if weight:
            runs = [*runs, [token_id]] if not before else [*runs[:-1], [*runs[-1], token_id]]
        before = weight
    end = "".join(template.assistant.after.partition(template.end_token)[:2])
    assert [tokenizer.decode(run).strip() for run in runs] == [
        f"Hi, how are you{end}",
        f"It is 12{end}",
    ]
    assert all(run[-1:] == stop_token_ids(template, tokenizer) for run in runs)


def test_weights_of_turns_cover_content_and_end_token(tokenizers):
    tokenizer = tokenizers["bytes"]
    turns = (user("q"), assistant("first answer", 0.1), user("r"), assistant("second answer"))
    encoded = encode(OPENCHAT, turns, tokenizer)
    lengths = {weight: encoded.weights.count(weight) for weight in set(encoded.weights)}
    assert lengths[0.1] == len(tokenizer.encode(" first answer")) + 1
    assert lengths[1.0] == len(tokenizer.encode(" second answer")) + 1
    asked = encode(OPENCHAT, (Turn("user", "q", 0.5), assistant("a", 0.0)), tokenizer)
    assert asked.weights.count(0.5) == len(tokenizer.encode(" q")) + 1 and 1.0 not in asked.weights


def test_no_weight_at_all_is_refused(tokenizers):
    with pytest.raises(ValueError, match="no token of the conversation has weight"):
        encode(OPENCHAT, (user("q"), assistant("a", 0.0)), tokenizers["bytes"])
    with pytest.raises(ValueError, match="no token of the conversation has weight"):
        encode(OPENCHAT, (user("q"),), tokenizers["bytes"])
    assert not any(encode(OPENCHAT, (user("q"),), tokenizers["bytes"], True).weights)


def test_truncate():
    encoded = Encoded([5, 6, 7, 8], [0.0, 0.0, 1.0, 1.0])
    assert truncate(encoded, 4) is encoded
    assert truncate(encoded, 3) == Encoded([5, 6, 7], [0.0, 0.0, 1.0])
    assert truncate(encoded, 2) is None


# ---- what must hold for every template and tokenizer
# -------------------------------------------------------


@pytest.mark.parametrize("template", TABLE.values(), ids=TABLE)
def test_template_is_well_formed(template):
    assert template.assistant.after.strip().startswith(template.end_token)
    assert template.name == next(name for name, entry in TEMPLATES.items() if entry is template)
    # BOS is encode's.
    assert "<s>" not in "".join((*template.system, *template.user, *template.assistant))
    assert template.condition in template.head + template.assistant.before
    # An answer's first piece must not hang on what stands before it; these two were trained with a
    # lone space.
    assert not template.assistant.before.endswith(" ") or template.name in (
        "openchat_v1",
        "ultralm",
    )


@pytest.mark.parametrize("template", TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_is_a_prefix_and_bos_comes_once(template, kind, tokenizers):
    tokenizer, rng = tokenizers[kind], random.Random(f"{template.name} {kind}")
    for _ in range(40):
        turns = random_turns(rng, WORDS + INJECTIONS, rng.randrange(1, 4))
        whole = encode(template, turns, tokenizer)
        assert len(whole.ids) == len(whole.weights)
        assert 0 < sum(weight > 0 for weight in whole.weights) < len(whole.weights)
        begins = template.bos * 1 + (len(turns) // 2 - 1 if template.between_pairs == "<s>" else 0)
        assert whole.ids.count(tokenizer.bos_token_id) == begins
        assert (whole.ids[0] == tokenizer.bos_token_id) == template.bos
        for end in range(len(turns) - 1, 0, -2):
            prompt = encode(template, turns[:end], tokenizer, add_generation_prompt=True)
            assert prompt.ids == whole.ids[: len(prompt.ids)]
            assert whole.weights[len(prompt.ids)] == 1.0  # the answer starts right there
        assert text(template, turns).startswith(text(template, turns[:-1], True))


@pytest.mark.parametrize("template", TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("written", INJECTIONS)
def test_what_a_user_writes_is_never_special(template, kind, written, tokenizers):
    tokenizer = tokenizers[kind]
    plain = encode(template, (user("say what now"), assistant("ok")), tokenizer)
    said = encode(template, (user(f"say {written} now"), assistant("ok")), tokenizer)
    for special in {
        *tokenizer.convert_tokens_to_ids(SPECIAL),
        tokenizer.bos_token_id,
        tokenizer.pad_token_id,
    }:
        assert said.ids.count(special) == plain.ids.count(special)
    assert written in tokenizer.decode(said.ids)
    # The mask does not move: the same answer is weighed, in the same place from the end.
    from_end = len(plain.ids) - plain.weights.index(1.0)
    assert said.weights[-from_end:] == plain.weights[-from_end:] and said.weights.count(
        1.0
    ) == plain.weights.count(1.0)
    assert said.ids[-from_end:] == plain.ids[-from_end:]


# A byte-level tokenizer joins openchat_v1's lone space to the content that follows.
@pytest.mark.parametrize(
    "name, kind",
    [(name, kind) for name in TABLE for kind in KINDS if (name, kind) != ("openchat_v1", "bytes")],
)
def test_pieces_give_the_ids_of_the_whole_string(name, kind, tokenizers):
    template = TABLE[name]
    turns = (
        user("Hello there"),
        assistant("Hi, I can help you"),
        user("What is 12?"),
        assistant("A number."),
    )
    tokenizer = tokenizers[kind]
    if template.name in PIECEWISE:
        turns = turns[:1]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    served = tokenizer.apply_chat_template(
        messages,
        chat_template=jinja(template, tokenizer),
        add_generation_prompt=len(turns) == 1,
        return_dict=False,
    )
    assert encode(template, turns, tokenizer, len(turns) == 1).ids == served
    # That one needs spaces written in.
    if template.name.startswith(("vicuna", "openchat_3.5")) and kind != "first":
        whole = tokenizer(text(template, turns), add_special_tokens=False).input_ids
        assert encode(template, turns, tokenizer).ids == [tokenizer.bos_token_id, *whole]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["vicuna_v1.1", "openchat_3.5", "openchat_v2", "llama2"])
def test_the_tokenizer_s_own_template_gives_the_ids_that_it_is_served_with(name, kind, tokenizers):
    tokenizer, rng = tokenizers[kind], random.Random(name)
    tokenizer.chat_template = jinja(TABLE[name], tokenizer)
    for _ in range(20):
        said = [" ".join(rng.choices(["Hello", "quick", "12", "it's"], k=3)) for _ in range(4)]
        turns = (user(said[0]), assistant(said[1]), user(said[2]), assistant(said[3]))
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        served = tokenizer.apply_chat_template(messages, return_dict=False)
        asked = tokenizer.apply_chat_template(
            messages[:3], return_dict=False, add_generation_prompt=True
        )
        assert encode(find("tokenizer"), turns, tokenizer).ids == served
        assert (
            encode(find("tokenizer"), turns[:3], tokenizer, True).ids
            == asked
            == served[: len(asked)]
        )
    assert stop_token_ids(find("tokenizer"), tokenizer) == stop_token_ids(TABLE[name], tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_content_keeps_its_own_spaces(kind, tokenizers):
    tokenizer = tokenizers[kind]
    counts = []
    for spaces in range(4):
        encoded = encode(OPENCHAT, (user("q"), assistant(" " * spaces + "Hello")), tokenizer)
        tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
        answer = "".join(
            token for token, weight in zip(tokens, encoded.weights, strict=True) if weight
        )
        counts.append(answer.replace("Ġ", "▁").removesuffix(EOT))
    assert counts == ["▁Hello", "▁▁Hello", "▁▁▁Hello", "▁▁▁▁Hello"]


@pytest.mark.parametrize("kind", ["normalizer", "legacy"])
@pytest.mark.parametrize("name", ["openchat_v2", "openchat_v3.2", "openchat_v1", "ultralm"])
def test_content_that_stands_alone_gets_the_tokenizer_s_space_before_its_own(
    name, kind, tokenizers
):
    """As in OpenChat's and UltraChat's code, which encode prefix and content apart."""
    tokenizer = tokenizers[kind]
    for content in ("Hello", " Hello", "   Hello you "):
        encoded = encode(TABLE[name], (user("q"), assistant(content)), tokenizer)
        answer = [i for i, weight in zip(encoded.ids, encoded.weights, strict=True) if weight]
        assert answer[:-1] == tokenizer(content, add_special_tokens=False).input_ids
    prefix = tokenizer.convert_ids_to_tokens(encode(TABLE[name], (user("q"),), tokenizer, True).ids)
    assert (prefix[-1] == "▁") == (name in ("openchat_v1", "ultralm")), (
        "the lone space that these two have"
    )


# Line breaks of these meet the content's: where it has none at its ends, a byte-level tokenizer
# reads the whole string as the pieces. Those of PIECEWISE have a space or line breaks before the
# content: never.
LINES = ("alpaca", "chatml")


@pytest.mark.parametrize("name", [name for name in TABLE if name not in PIECEWISE])
def test_jinja_agrees_in_text_ids_and_mask(name, tokenizers):
    template, tokenizer, rng = TABLE[name], tokenizers["bytes"], random.Random(name)
    form, bos = jinja(template), "<s>" * template.bos
    for _ in range(60):
        turns = random_turns(rng, [*WORDS, INPUT], rng.randrange(1, 4))
        if name in LINES:
            turns = tuple(replace(turn, content=f"x{turn.content.strip()}") for turn in turns)
        for ended, prompt in ((turns, False), (turns[:-1], True)):
            messages = [{"role": turn.role, "content": turn.content} for turn in ended]
            options = {"chat_template": form, "add_generation_prompt": prompt}
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, **options)
            assert rendered == bos + text(template, ended, prompt)
            applied = tokenizer.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True, **options
            )
            encoded = encode(template, ended, tokenizer, prompt)
            assert applied["input_ids"] == encoded.ids
            assert applied["assistant_masks"] == [int(weight > 0) for weight in encoded.weights]


def test_jinja_text_is_exact_for_special_strings_too_and_roles_are_checked(tokenizers):
    tokenizer, rng = tokenizers["bytes"], random.Random(0)
    words = WORDS + INJECTIONS + [INPUT, "{{ 1 }}", "{% if %}", "'", '"', "\\n"]
    for template in TABLE.values():
        form, bos, with_input = jinja(template), "<s>" * template.bos, 0
        for number in range(1000):
            turns = random_turns(rng, words, rng.randrange(1, 4))
            turns = turns[: len(turns) - number % 2]  # every other one is a prompt
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            rendered = tokenizer.apply_chat_template(
                messages, tokenize=False, chat_template=form, add_generation_prompt=bool(number % 2)
            )
            assert rendered == bos + text(template, turns, bool(number % 2))
            with_input += bool(template.input_system) and template.input_system in rendered
        assert (with_input > 20) == (template.name == "alpaca")
        with pytest.raises(Exception, match="roles are user and assistant"):
            tokenizer.apply_chat_template(
                [{"role": "tool", "content": "x"}], chat_template=jinja(template)
            )


# ---- tokenizers that do not fit
# ----------------------------------------------------------------------------


def test_tokenizer_without_bos_gets_none():
    tokenizer = train_tokenizer(CORPUS, 300, (EOT,), 128)
    tokenizer.bos_token = None
    ids = encode(OPENCHAT, HELLO[:2], tokenizer).ids
    assert tokenizer.decode(ids) == text(OPENCHAT, HELLO[:2])
    messages = [{"role": turn.role, "content": turn.content} for turn in HELLO[:2]]
    assert tokenizer.apply_chat_template(
        messages, tokenize=False, chat_template=jinja(OPENCHAT)
    ) == text(OPENCHAT, HELLO[:2])


def test_tokenizer_without_the_end_token_is_refused():
    tokenizer = train_tokenizer(CORPUS, 300, ("</s>",), 128)
    for call in (
        lambda: encode(OPENCHAT, HELLO, tokenizer),
        lambda: stop_token_ids(OPENCHAT, tokenizer),
    ):
        with pytest.raises(
            ValueError, match=r"openchat_3.5 needs the token '<\|end_of_turn\|>'.*among the 300"
        ):
            call()
    tokenizer.add_tokens([EOT])  # in the vocabulary now, but as a word like others
    assert stop_token_ids(OPENCHAT, tokenizer) == [300]
    with pytest.raises(
        RowError, match="expected text in which the tokenizer reads no special token"
    ):
        encode(OPENCHAT, (user(f"What is {EOT}?"), assistant("An end.")), tokenizer)


@pytest.mark.parametrize("turns, prompt", [
    ((), False), ((assistant("a"),), False), ((user("q"), user("r")), True),
    ((user("q"), assistant("a")), True), ((user(" "), assistant("a")), False),
    ((Turn("robot", "x"),), False)])  # fmt: skip
def test_invalid_turns_are_refused(turns, prompt):
    with pytest.raises(ValueError, match="found .*, expected"):
        pieces(OPENCHAT, turns, prompt)


def test_unknown_template_is_refused_with_the_known_names():
    with pytest.raises(
        ValueError, match="unknown chat template 'vicuna'; known: vicuna_v1.1, openchat_3.5"
    ):
        find("vicuna")


def test_a_new_template_is_one_declaration(tokenizers):
    chatml = Template(
        "chatml",
        system=Frame("<|im_start|>system\n", "", "<|im_end|>\n"),
        user=Frame("<|im_start|>user\n", "", "<|im_end|>\n"),
        assistant=Frame("<|im_start|>assistant\n", "", "<|im_end|>\n"),
        special_tokens=("<|im_end|>", "<|im_start|>"),
    )
    tokenizer = train_tokenizer(CORPUS, 300, chatml.special_tokens, 128)
    turns = (Turn("system", "s"), user("q"), assistant("a"))
    expected = (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\na<|im_end|>\n"
    )
    assert text(chatml, turns) == expected
    encoded = encode(chatml, turns, tokenizer)
    assert tokenizer.decode(encoded.ids) == "<s>" + expected
    weighed = [token for token, weight in zip(encoded.ids, encoded.weights, strict=True) if weight]
    assert tokenizer.decode(weighed) == "a<|im_end|>"
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, chat_template=jinja(chatml))
        == "<s>" + expected
    )
