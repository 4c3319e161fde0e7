"""`rayward extend`: new rows are as said, old ones and old answers stay, and errors name the way
out.
"""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from rayward.actors.models.load import load_scalar
from rayward.data.records import Turn
from rayward.data.templates.template import encode, find
from rayward.data.templates.tokenizer import load_tokenizer
from rayward.pipelines.cli import main
from rayward.pipelines.model_tools.extend import extend

NEW = ("<|im_end|>", "<|im_start|>")
LONG = torch.arange(3, 203)[None]


def logits(folder, ids=LONG):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits


@pytest.fixture(scope="module")
def tied(tiny_models, tmp_path_factory) -> str:
    """The tiny model with one matrix for embedding and head, padded with rows that no token has, in
    bfloat16.
    """
    folder = tmp_path_factory.mktemp("tied")
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.policy)
    config = AutoConfig.from_pretrained(tiny_models.policy)
    config.tie_word_embeddings, config.vocab_size = True, len(tokenizer) + 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_new_rows_are_the_mean_in_embedding_and_head(tiny_models, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["extend", tiny_models.policy, "--template", "chatml", "--out", str(out)]) == 0
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_models.policy, out)
    )
    rows = len(tiny_models.tokenizer)
    assert f"{NEW[0]} = {rows}" in capsys.readouterr().out.replace("\n", " ")
    assert new.config.vocab_size == rows + 2 == len(load_tokenizer(out))
    for before, after in (
        (old.get_input_embeddings().weight, new.get_input_embeddings().weight),
        (old.get_output_embeddings().weight, new.get_output_embeddings().weight),
    ):
        assert torch.equal(after[:rows], before)
        torch.testing.assert_close(after[rows:], before.mean(0).expand(2, -1), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        logits(out)[..., :rows], logits(tiny_models.policy), atol=1e-5, rtol=0
    )


def test_the_extended_model_takes_the_template(tiny_models, tmp_path):
    turns = (Turn("user", "Hello"), Turn("assistant", "Hi <|im_end|>"))
    with pytest.raises(
        ValueError, match="rayward extend MODEL --template chatml --out DIR adds it"
    ):
        encode(find("chatml"), turns, load_tokenizer(tiny_models.policy))
    extend(tiny_models.policy, tmp_path / "out", list(NEW))
    tokenizer = load_tokenizer(tmp_path / "out")
    end, start = tokenizer.convert_tokens_to_ids(list(NEW))
    row = encode(find("chatml"), turns, tokenizer)
    assert (row.ids.count(start), row.ids.count(end)) == (2, 2), (
        "what the text spells is no special token"
    )
    assert row.weights[row.ids.index(end, row.ids.index(end) + 1)] == 1
    assert tokenizer.decode(row.ids, skip_special_tokens=True).endswith("Hi <|im_end|>\n")
    assert tokenizer("Hello there").input_ids == tiny_models.tokenizer("Hello there").input_ids
    assert tokenizer.eos_token == tiny_models.tokenizer.eos_token


def test_rows_that_pad_a_tied_bf16_vocabulary_are_used_first(tied, tmp_path):
    done = extend(tied, tmp_path / "out", ["<a>"])
    old, new = (
        AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        for folder in (tied, tmp_path / "out")
    )
    rows = old.config.vocab_size
    assert done["embedding rows"] == f"{rows} -> {rows}" and new.dtype == torch.bfloat16
    weight = new.get_input_embeddings().weight
    assert weight.data_ptr() == new.get_output_embeddings().weight.data_ptr()
    mean_H = old.get_input_embeddings().weight[: rows - 1].float().mean(0).to(torch.bfloat16)
    assert torch.equal(weight[rows - 1], mean_H) and torch.equal(
        weight[:-1], old.get_input_embeddings().weight[:-1]
    )


def test_normal_rows_follow_the_seed(tiny_models, tmp_path):
    tokens = [f"<n{number}>" for number in range(200)]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        extend(tiny_models.policy, tmp_path / name, tokens, "normal", 0.5, seed)
    a, b, c = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).lm_head.weight[-200:]
        for name in "abc"
    )
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert float(a.std()) == pytest.approx(0.5, rel=0.03) and abs(float(a.mean())) < 0.02


def test_the_context_alone_changes_nothing_that_was_there(tiny_models, tmp_path):
    old = AutoConfig.from_pretrained(tiny_models.policy).max_position_embeddings
    extend(tiny_models.policy, tmp_path / "out", [], context=4 * old)
    assert AutoConfig.from_pretrained(tmp_path / "out").max_position_embeddings == 4 * old
    assert load_tokenizer(tmp_path / "out").model_max_length == 4 * old
    assert torch.equal(logits(tmp_path / "out"), logits(tiny_models.policy))


def test_linear_positions_are_divided(tiny_models, tmp_path):
    old = AutoConfig.from_pretrained(tiny_models.policy).max_position_embeddings
    extend(tiny_models.policy, tmp_path / "out", [], context=2 * old, rope="linear")
    lm = AutoModelForCausalLM.from_pretrained(tiny_models.policy).eval()
    with torch.no_grad():
        halved = lm(LONG, position_ids=torch.arange(LONG.shape[1])[None] / 2).logits
    torch.testing.assert_close(logits(tmp_path / "out"), halved, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rope", ["dynamic", "yarn", '{"rope_theta": 500000.0}'])
def test_other_ways_to_stretch(tiny_models, tmp_path, rope):
    old = AutoConfig.from_pretrained(tiny_models.policy).max_position_embeddings
    extend(tiny_models.policy, tmp_path / "out", [], context=4 * old, rope=rope)
    parameters = AutoConfig.from_pretrained(tmp_path / "out").rope_parameters
    if rope.startswith("{"):
        assert (parameters["rope_type"], parameters["rope_theta"]) == ("default", 500000.0)
    else:
        assert (parameters["rope_type"], parameters["factor"]) == (rope, 4.0)
        assert parameters.get("original_max_position_embeddings", old) == old
    same = torch.equal(logits(tmp_path / "out"), logits(tiny_models.policy))
    assert same == (rope == "dynamic"), (
        "only dynamic leaves contexts as they were that the model knew before"
    )
    assert bool(logits(tmp_path / "out", torch.arange(3, 203).repeat(5)[None]).isfinite().all())


def test_what_cannot_be_done_is_refused(tiny_models, tmp_path, capsys):
    def refused(*arguments, model=tiny_models.policy, out=tmp_path / "out"):
        assert main(["extend", model, "--out", str(out), *arguments]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    gpt2 = str(tmp_path / "gpt2")
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab_size=300)).save_pretrained(
        gpt2
    )
    tiny_models.tokenizer.save_pretrained(gpt2)
    (tmp_path / "full").mkdir()
    assert "is there already" in refused("--token", "<a>", out=tmp_path / "full")
    assert "give --template, --token or --context" in refused()
    assert "needs no extension: it has <|end_of_turn|>" in refused("--template", "openchat_3.5")
    assert "unknown chat template 'chat'" in refused("--template", "chat")
    assert "--context is 8, the model's is" in refused("--context", "8")
    assert "--rope yarn needs --context" in refused("--rope", "yarn")
    assert "--rope is 'ntk'; give linear, dynamic, yarn" in refused(
        "--rope", "ntk", "--context", "9999"
    )
    assert "not JSON" in refused("--rope", "{", "--context", "9999")
    assert "--rope" in refused("--rope", '{"rope_type": "longrope"}', "--context", "9999")
    assert "rope_type is 'wrong', which transformers does not know" in refused(
        "--rope", '{"rope_type": "wrong"}'
    )
    shrink = '{"rope_type": "linear", "factor": 0.5}'
    assert "factor is 0.5; give a number of at least 1" in refused(
        "--rope", shrink, "--context", "9999"
    )
    assert "gpt2 has no rotary positions" in refused("--context", "9999", model=gpt2)
    assert "nowhere is no folder, nor a hub name" in refused(
        "--token", "<a>", model=str(tmp_path / "nowhere")
    )


def test_a_reward_model_stays_one(tiny_models, tmp_path):
    """Before, a language model with a random head was written."""
    extend(tiny_models.reward, tmp_path / "out", ["<new>"])
    before, after = (
        load_scalar(str(folder), "float32") for folder in (tiny_models.reward, tmp_path / "out")
    )
    assert torch.equal(before.classifier.score.weight, after.classifier.score.weight)
    rows = [model.classifier.get_input_embeddings().weight for model in (before, after)]
    assert len(rows[1]) == len(rows[0]) + 1 and torch.equal(rows[1][:-1], rows[0])


def test_nothing_is_left_where_it_cannot_be_written(tiny_models, tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(OSError, match="No space"):
        extend(tiny_models.policy, tmp_path / "out", ["<new>"])
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_lacks_rows_for_its_tokenizer_gets_them(tiny_models, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.policy)
    rows = len(tokenizer)
    AutoModelForCausalLM.from_pretrained(tiny_models.policy).save_pretrained(tmp_path / "short")
    tokenizer.add_tokens(["<plain>"])
    tokenizer.save_pretrained(tmp_path / "short")
    extend(str(tmp_path / "short"), tmp_path / "out", ["<|end_of_turn|>"])
    weight = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_input_embeddings().weight
    assert len(weight) == rows + 1
    torch.testing.assert_close(weight[rows], weight[:rows].mean(0), atol=1e-6, rtol=0)

    extend(str(tmp_path / "short"), tmp_path / "special", ["<plain>"])
    ids = load_tokenizer(tmp_path / "special")("a<plain>b", split_special_tokens=True).input_ids
    assert rows not in ids, "a special token can be told from text"
    with pytest.raises(ValueError, match="--token is empty"):
        extend(tiny_models.policy, tmp_path / "none", [""])
