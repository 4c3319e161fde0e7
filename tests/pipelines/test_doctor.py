"""`rayward doctor`: figures worked out by hand, what it finds before it starts anything, and one
model all through.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rayward.data.ragged import Ragged
from rayward.data.rollouts import Rollouts
from rayward.data.templates.tokenizer import tokenizer_of
from rayward.pipelines.cli import main
from rayward.pipelines.model_tools.doctor import differences, judge, largest
from rayward.pipelines.model_tools.examine import examine, head_sizes


def made(rows: list[list[int]], logprobs: list[float]) -> Rollouts:
    return Rollouts(
        prompts=Ragged.of([[1]] * len(rows)),
        responses=Ragged.of(rows),
        prompt_index=np.arange(len(rows)),
        finished=np.ones(len(rows), bool),
        rollout_logprobs=np.array(logprobs, np.float32),
        weight_version=0,
    )


ROLLOUTS = made([[40, 41, 42], [43]], [-1.0, -2.0, -3.0, -0.5])


def test_the_verdict_is_that_of_rl() -> None:
    figures, complaint = judge(
        ROLLOUTS, np.array([-1.0, -1.75, -3.0, -1.0], np.float32), "bfloat16"
    )
    # gaps of 0, 0.25, 0 and -0.5: exp(0.25) - 1.25 = 0.034025, exp(-0.5) - 0.5 = 0.106531
    assert figures["mismatch_mean"] == pytest.approx(0.1875) and figures[
        "mismatch_max"
    ] == pytest.approx(0.5)
    assert figures["mismatch_k3"] == pytest.approx((0.0340254 + 0.1065307) / 4, abs=1e-6)
    assert figures["mismatch_factor"] == pytest.approx((2 + 1.2840254 + 1.6487213) / 4, abs=1e-6)
    assert "0.188 nats" in complaint and "0.05 in bfloat16" in complaint
    near = ROLLOUTS.rollout_logprobs + np.float32(4e-5)
    assert judge(ROLLOUTS, near, "float32")[1] == ""
    assert judge(ROLLOUTS, ROLLOUTS.rollout_logprobs + np.float32(2e-4), "float32")[1] != ""
    assert judge(ROLLOUTS, ROLLOUTS.rollout_logprobs + np.float32(2e-4), "bfloat16")[1] == ""
    assert judge(ROLLOUTS, np.full(4, np.nan, np.float32), "bfloat16")[1] != ""


def test_the_largest_gaps_are_named(tiny_models) -> None:
    trainer = np.array([-1.0, -1.75, np.nan, -1.0], np.float32)
    rows = largest(ROLLOUTS, trainer, tiny_models.tokenizer)[:3]
    words = [tiny_models.tokenizer.decode([token]) for token in (42, 43, 41)]
    assert [row[0] for row in rows] == [
        f"{w!r} ({i})" for w, i in zip(words, (42, 43, 41), strict=True)
    ]
    assert [row[1:3] for row in rows] == [(0, "3 of 3"), (1, "1 of 1"), (0, "2 of 3")]
    assert [row[-1] for row in rows] == [np.inf, 0.5, 0.25]


def test_differences_end_where_answers_part() -> None:
    assert differences(ROLLOUTS, ROLLOUTS) == (0.0, 0.0)
    # The first answer goes its own way after one token, whose log-prob has other bits; the second
    # only has other bits.
    other = made([[40, 50, 60, 70], [43]], [-1.1, -9.0, -9.0, -9.0, -0.6])
    assert differences(ROLLOUTS, other) == (0.5, 1.0)
    longer = made([[40, 41, 42, 43]], [-1.0, -2.0, -3.0, -1.0])
    assert differences(ROLLOUTS, longer) == (1.0, 0.0)


@pytest.fixture
def folder(tiny_models, tmp_path: Path) -> Path:
    """A copy of the tiny model to break."""
    return Path(shutil.copytree(tiny_models.policy, tmp_path / "model"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


SOUND = ["chat template tokenizer: ends answers with '<|end_of_turn|>'"]


@pytest.mark.parametrize(
    "break_it, told",
    [
        (lambda folder: change(folder / "tokenizer_config.json", eos_token=None), "no end token"),
        (
            lambda folder: (folder / "generation_config.json").write_text("{"),
            "generation_config.json is no JSON: ",
        ),
        (
            lambda folder: (folder / "tokenizer_config.json").write_text("["),
            "tokenizer_config.json is no JSON: ",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages[0].content }}"),
            "cannot be trained from: the chat template leaves out what the assistant says: "
            "turns[1] (assistant)",
        ),
        (
            lambda folder: change(folder / "config.json", vocab_size=290),
            "embeddings for 290 tokens",
        ),
        (without_tokenizer, "no tokenizer in"),
        (
            lambda folder: change(folder / "config.json", head_dim=24),
            "heads of 24: vLLM on the CPU takes 32, 64",
        ),
        (
            lambda folder: change(folder / "config.json", num_hidden_layers=1),
            "holds weights that would be left out: 9",
        ),
        (
            lambda folder: change(folder / "adapter_config.json", peft_type="LORA"),
            "holds an adapter (adapter_config.json)",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read: "),
        (
            lambda folder: change(
                folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}
            ),
            "RAYWARD_TRUST_REMOTE_CODE=1",
        ),
        (
            lambda folder: (folder / "generation_config.json").write_text("[]"),
            "config.json holds list, and a JSON object",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "model: the tokenizer cannot be read: KeyError",
        ),
    ],
)
def test_what_would_break_rollouts_is_told_before_anything_starts(
    folder: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[Path], None], told: str
) -> None:
    assert examine(folder) == ([], SOUND)
    break_it(folder)
    status = main(["doctor", "--model", str(folder)])
    printed = capsys.readouterr()
    # Without its tokenizer nothing can be looked at.
    unread = "tokenizer_config.json is no JSON" in told or "tokenizer cannot be read" in told
    assert (status, "PROBLEM: " in printed.out) == ((2, False) if unread else (1, True))
    assert told in printed.out + printed.err and "mismatch" not in printed.out


def test_heads_of_models_that_have_none_or_several_sizes() -> None:
    from transformers import Gemma4TextConfig, LlamaConfig, MambaConfig

    assert head_sizes(MambaConfig()) == set()
    assert head_sizes(LlamaConfig(hidden_size=96, num_attention_heads=2)) == {48}
    assert head_sizes(Gemma4TextConfig()) == {256, 512}


def test_a_class_that_reads_the_tokenizer_otherwise_is_told(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    broken, notes = examine(folder)
    assert broken == [] and notes[0].startswith(
        "the tokenizer: by its class, LlamaTokenizer, 'Hello there' is "
    )


def test_a_space_in_front_of_a_text_is_no_other_reading(folder: Path) -> None:
    """GPT-2's class puts it there where the config says so, whatever tokenizer.json does."""
    change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer", add_prefix_space=True)
    tokenizer, told = tokenizer_of(folder)
    assert told == "" and tokenizer.tokenize("Hello") == tokenizer.tokenize(" Hello")


def test_notes_are_no_problems(folder: Path) -> None:
    change(
        folder / "generation_config.json",
        top_p=0.9,
        top_k=40,
        repetition_penalty=1.0,
        temperature=None,
    )
    config = AutoConfig.from_pretrained(folder)
    config.vocab_size, config.head_dim = config.vocab_size + 20, 24
    given = (folder / "generation_config.json").read_text()
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(given)
    broken, notes = examine(folder, gpus=1)
    assert broken == [] and len(notes) == 3
    assert "has top_p 0.9, top_k 40: training rollouts ignore it" in notes[0] and notes[
        1
    ].startswith("the model has 20")


def test_the_template_that_is_chosen_is_compared_with_the_model_s(folder: Path) -> None:
    assert examine(folder, template="openchat_3.5") == ([], []), "the same one"
    broken, notes = examine(folder, template="vicuna_v1.1")
    assert "needs the token '</s>'" in broken[0]
    assert notes[0].startswith(
        "chat template vicuna_v1.1: the model's folder has another chat template: in line 1 it"
    )
    assert (
        "'<s>GPT4 Correct User: Hello there" in notes[0]
        and "this one '<s>A chat between" in notes[0]
    )
    with pytest.raises(ValueError, match="unknown chat template 'vicuna'"):
        examine(folder, template="vicuna")
    (folder / "chat_template.jinja").unlink()
    assert examine(folder) == (
        [],
        [
            "the tokenizer has no chat template: name one, here with --template and in "
            "model.template"
        ],
    )


@pytest.mark.parametrize(
    "options, told",
    [
        (["--model", "nowhere"], "nowhere is no folder"),
        (["--model", "."], "has no config.json"),
        (["--model", ".", "--temperature", "0"], "--temperature is 0"),
        (["--model", ".", "--count", "0"], "--count is 0"),
    ],
)
def test_mistakes_are_told(
    options: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_reward_model_is_read_where_it_was_trained(
    tiny_models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers reads scores at the last token that is not the pad id: the end token must not be
    that.
    """
    folder = Path(shutil.copytree(tiny_models.reward, tmp_path / "reward"))
    assert main(["doctor", "--model", str(folder)]) == 0
    assert "fit to score" in capsys.readouterr().out
    end = tiny_models.tokenizer.convert_tokens_to_ids("<|end_of_turn|>")
    for pad, told in (
        (end, f"pad_token_id {end} of config.json is '<|end_of_turn|>'"),
        (None, "no pad_token_id"),
    ):
        change(folder / "config.json", pad_token_id=pad)
        assert main(["doctor", "--model", str(folder)]) == 1
        assert told in capsys.readouterr().out


@pytest.mark.slow
def test_a_head_beside_a_config_that_ties_it_is_told(
    local_ray, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder / "config.json", tie_word_embeddings=True)
    assert (
        main(
            [
                "doctor",
                "--model",
                str(folder),
                "--count",
                "2",
                "--tokens",
                "4",
                "--dtype",
                "float32",
            ]
        )
        == 1
    )
    told = "".join(capsys.readouterr())
    assert (
        "the weights hold a head of its own that differs from the embedding" in told
        and "Traceback" not in told
    )


@pytest.mark.slow
def test_a_sound_model_is_fit(
    local_ray, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both engines for real, on chats; the same answers in batches of 16 and of 2."""
    asked = [{"instruction": f"What is {n} plus {n}?"} for n in range(8)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    options = [
        "--prompts",
        str(tmp_path / "asked.jsonl"),
        "--count",
        "8",
        "--tokens",
        "12",
        "--temperature",
        "0.8",
    ]
    status = main(["doctor", "--model", str(folder), *options, "--dtype", "float32"])
    printed = capsys.readouterr().out
    assert status == 0 and "fit for RL" in printed, printed
    figures = dict(re.findall(r"^ *(\S.*?) {2,}(\S+) *$", printed, re.MULTILINE))
    assert 0 < float(figures["mismatch_mean"]) < 1e-4
    assert float(figures["mismatch_factor"]) == pytest.approx(1, abs=1e-3)
    assert int(figures["answers"]) == 8 and 8 <= int(figures["tokens"]) <= 96
    for size in (16, 2):
        assert figures[f"{size} at once: answers with other tokens"] == "0.0%"
        assert figures[f"{size} at once: log-probs with other bits"] == "0.0%"


def test_the_clocks_of_one_machine_agree(local_ray: None) -> None:
    import ray

    from rayward.pipelines.model_tools.machine_check import _clocks

    found = _clocks(ray.nodes())
    assert found.found == "within 0.0 s of each other" and not found.note
