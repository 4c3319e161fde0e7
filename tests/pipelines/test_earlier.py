"""A run that commit c0eebdd began goes on, or says what has changed and what to make again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rayward.configs.load import load
from rayward.configs.schema import Config
from rayward.configs.stages import STAGES, all_parts
from rayward.data.templates.jinja import jinja
from rayward.data.templates.saved_tokenizer import assert_served_as_trained
from rayward.data.templates.template import find
from rayward.data.templates.tokenizer import load_tokenizer, train_tokenizer
from rayward.pipelines.align import stage_of
from rayward.pipelines.run.earlier import ROWS, outdated
from rayward.pipelines.run.errors import StageError
from rayward.pipelines.run.files import read_json, write_json
from rayward.pipelines.run.folder import Run
from rayward.pipelines.run.stage import begin
from tests.data.kinds import CORPUS, SPECIAL, sentencepiece_tokenizer
from tests.data.published import CHATML

# With the mask that c0eebdd asked for: as what is derived now, and with the newline after the end
# token in it.
MASKED = CHATML.replace(
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}",
    "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}{{ "
    "m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{ m.content + "
    "'<|im_end|>\\n' }}{% endif %}",
)
MORE = MASKED.replace("{% endgeneration %}{{ '\\n' }}", "{{ '\\n' }}{% endgeneration %}")


@pytest.fixture
def old(tmp_path: Path, tiny_config: Callable[..., Config]) -> Callable[..., Run]:
    """`old(template, tokenizer)`: a run folder with the stages prepare and reward, as that commit
    left them.
    """

    def made(template: str, tokenizer: Any) -> Run:
        model = {"template": template, "path": str(tmp_path), "scratch": None}
        run = Run(tmp_path / "run", tiny_config(model=model))
        for name, inputs in (
            ("prepare", ()),
            ("sft", ("prepare",)),
            ("reward", ("prepare", "sft")),
        ):
            stage = begin(run, name, inputs)
            assert stage is not None
            stage.finish({})
            if name == "prepare":
                tokenizer.save_pretrained(run.folder / "prepare" / "tokenizer")
        for name in ("prepare", "sft", "reward"):
            manifest = read_json(run.folder / name / "manifest.json")
            assert manifest.pop("rows") == ROWS
            write_json(run.folder / name / "manifest.json", manifest)
        return run

    return made


def test_a_run_whose_rows_are_the_same_goes_on(old: Callable[..., Run]) -> None:
    tokenizer = train_tokenizer(CORPUS, 300, ("<|end_of_turn|>",), 128)
    tokenizer.chat_template = jinja(find("openchat_3.5"))
    run = old("openchat_3.5", tokenizer)
    for stage in ("prepare", "sft", "reward"):
        run.require(stage)
    assert begin(run, "prepare") is None


def test_chatml_with_its_bos_twice_is_to_be_prepared_again(old: Callable[..., Run]) -> None:
    tokenizer = train_tokenizer(CORPUS, 300, ("<|im_end|>", "<|im_start|>"), 128)
    tokenizer.bos_token = "<|im_start|>"
    run = old("chatml", tokenizer)
    told = (
        r"prepare was made by an earlier version: chat template chatml put '<\|im_start\|>' before "
        r"every row twice "
    )
    for ask in (
        lambda: run.require("prepare"),
        lambda: begin(run, "prepare"),
        lambda: begin(run, "sft", ("prepare",)),
    ):
        with pytest.raises(StageError, match=told + "then, once now.*--redo prepare"):
            ask()
    shutil.rmtree(run.folder / "prepare")
    assert begin(run, "prepare") is not None


def test_rows_that_ended_after_the_end_token_are_to_be_scored_again(
    old: Callable[..., Run],
) -> None:
    run = old("chatml", train_tokenizer(CORPUS, 300, ("<|im_end|>", "<|im_start|>"), 128))
    run.require("prepare")
    with pytest.raises(
        StageError, match="reward was made by an earlier version: chat template chatml writes more"
    ):
        run.require("reward")


@pytest.mark.parametrize(
    "form, told", [(MASKED, ""), (MORE, "gave rows other ids then, or trained other tokens")]
)
def test_the_tokenizer_s_own_template_is_compared_row_by_row(
    form: str, told: str, old: Callable[..., Run]
) -> None:
    tokenizer = train_tokenizer(CORPUS, 300, ("<|im_end|>", "<|im_start|>"), 128)
    tokenizer.chat_template = form
    run = old("tokenizer", tokenizer)
    found = outdated(
        "prepare", run.manifest("prepare"), run.config.model, run.folder / "prepare" / "tokenizer"
    )
    assert (told in found) if told else not found


@pytest.mark.parametrize("name", ["vicuna_v1.1", "openchat_v2"])
def test_a_tokenizer_that_transformers_saved_otherwise_is_mended(
    name: str, old: Callable[..., Run], tmp_path: Path
) -> None:
    tokenizer, template = sentencepiece_tokenizer(tmp_path, CORPUS, SPECIAL), find(name)
    # As the chat template was then: it left the space behind a special token to the tokenizer.
    was = jinja(template, tokenizer).replace(".startswith(' ')", ".startswith('nothing')")
    tokenizer.chat_template = was.replace("{{ ' ' if ", "{{ '' if ")
    run = old(name, tokenizer)
    folder = run.folder / "prepare" / "tokenizer"
    with pytest.raises(ValueError, match="trains other tokens than a server gives"):
        assert_served_as_trained(template, AutoTokenizer.from_pretrained(folder))
    run.require("prepare")
    assert_served_as_trained(template, load_tokenizer(folder))
    assert load_tokenizer(folder).chat_template == jinja(template, tokenizer), "which now writes it"


def test_a_finished_run_of_then_has_no_other_settings_now(tmp_path: Path) -> None:
    """run_of_c0eebdd.json: config and manifests of the tiny road as that commit left them, models
    left out.
    """
    kept = read_json(Path(__file__).with_name("run_of_c0eebdd.json"))
    (tmp_path / "config.yaml").write_text(kept["config"])
    for part, manifest in kept["manifests"].items():
        write_json(tmp_path / part / "manifest.json", manifest)
    run = Run(tmp_path, load(str(tmp_path / "config.yaml")))
    assert set(kept["manifests"]) == all_parts(run.config)
    for stage in STAGES:
        assert stage_of(stage)(run) is None, f"{stage} is done and stays so"
    later = ["sft.validate_every=2", "sft.keep=best", "rl.critic=policy"]
    newer = Run(tmp_path, load(str(tmp_path / "config.yaml"), later))
    assert {part for part in kept["manifests"] if newer.state(part) != "done"} == {
        "sft",
        "rl/ppo",
        "rl/apa",
    }
