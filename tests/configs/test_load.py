"""Reading configs: every preset, every field by file and by --set, and every mistake with its place
and its fix.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from rayward.configs.load import PRESETS, ConfigError, dump, find, fingerprint, load
from rayward.configs.reference import groups
from rayward.configs.schema import Config

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
SOURCES = ("conversations", "preferences", "prompts", "evaluation_prompts")
LISTED = {*(("data", name) for name in SOURCES), ("scoring", "sources"), ("evaluate", "suites")}
# The smallest config with files instead of the toy world.
OWN_DATA = "model: {path: base}\ndata:\n" + "".join(
    f"  {name}: [{{path: {name}.jsonl}}]\n" for name in SOURCES
)


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(name: str | Path, *overrides: str) -> list[str]:
    """The lines of the error that loading must raise."""
    with pytest.raises(ConfigError) as caught:
        load(str(name), overrides)
    return str(caught.value).splitlines()


def leaves(values: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


# ---- what loads
# --------------------------------------------------------------------------------------------


def test_a_preset_is_found_from_anywhere_and_a_file_of_its_name_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "quickstart" in NAMES
    for name in ("quickstart", "quickstart.yaml", "configs/quickstart.yaml"):
        assert find(name) == PRESETS / "quickstart.yaml"
    own = tmp_path / "quickstart.yaml"
    own.write_text(dump(load("quickstart", ["seed=123"])), encoding="utf-8")
    assert load("quickstart.yaml").seed == load(str(own)).seed == 123


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_loads_and_comes_back_from_its_dump(name: str, tmp_path: Path) -> None:
    config = load(name)
    text = dump(config)
    assert load(str(write(tmp_path, text))) == config
    assert dump(load(str(write(tmp_path, text)))) == text
    first = find(name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ") and first.endswith("."), "`rayward presets` shows the first line"


TEXTS = [
    "1e3",
    "yes",
    "null",
    "a: b # c",
    "17",
    "ö ü 日本語",
    "two\nlines",
    "'\"",
    "",
    "~",
    "0x1F",
    "2024-01-01",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_a_dump(text: str, tmp_path: Path) -> None:
    plain = load("quickstart").model_dump()
    config = Config.model_validate({**plain, "name": text, "cluster": {"address": text}})
    assert load(str(write(tmp_path, dump(config)))) == config


@pytest.mark.parametrize("number", [1e-8, 3e-5, 0.1 + 0.2, 1e300, 5e-324, 1 / 3, 7])
def test_any_number_comes_back_from_a_dump_and_from_set(number: float, tmp_path: Path) -> None:
    config = load("quickstart", [f"rl.ppo.learning_rate={number!r}"])
    assert config.rl.ppo.learning_rate == number
    assert load(str(write(tmp_path, dump(config)))) == config


def test_set_reaches_every_field() -> None:
    """Each leaf written by --set over another preset's value gives back the config it was taken
    from.
    """
    config = load("quickstart")
    other = load(
        "quickstart",
        ["rl.gamma=0.5", "name=other", "resources.critic.workers=3", "rl.value_clip=null"],
    )
    overrides = [
        f"{'.'.join(keys)}={json.dumps(value)}"
        for keys, value in leaves(other.model_dump(mode="json"))
    ]
    assert len(overrides) > 100
    assert load("quickstart", overrides) == other != config


def test_saying_a_default_changes_nothing(tmp_path: Path) -> None:
    """Also where a section's own default differs from its class's, and the others of the section
    are not said.
    """
    path = str(write(tmp_path, OWN_DATA))
    config = load(path)
    changed = [
        ".".join(keys)
        for keys, value in leaves(config.model_dump(mode="json"))
        if load(path, [f"{'.'.join(keys)}={json.dumps(value)}"]) != config
    ]
    assert not changed


@pytest.mark.parametrize(
    "override, stays",
    [
        ("rl.optimizer.max_grad_norm=0.5", "rl.optimizer.schedule"),
        ("resources.train.cpus=1", "resources.train.threads"),
        ("sample.training.samples_per_step=8", "sample.training.epochs"),
        ("reward.optimizer.weight_decay=0.1", "reward.optimizer.learning_rate"),
    ],
)
def test_a_section_given_in_part_keeps_its_other_defaults(
    override: str, stays: str, tmp_path: Path
) -> None:
    path = write(tmp_path, OWN_DATA)
    before, after = (
        dict(leaves(load(str(path)).model_dump())),
        dict(leaves(load(str(path), [override]).model_dump())),
    )
    keys = tuple(stays.split("."))
    assert after[keys] == before[keys]
    assert {key for key in before if before[key] != after[key]} == {
        tuple(override.split("=")[0].split("."))
    }


def test_set_makes_sections_that_the_file_lacks_and_the_last_one_counts(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {scratch: {}}\ndata: {toyworld:}\nrl:\n")
    config = load(
        str(path),
        ["data.toyworld.prompts=40", "rl.ppo.clip=0.3", "seed=1", "seed=2", "rl.ppo.kl_coef=1e-3"],
    )
    assert (config.data.toyworld and config.data.toyworld.prompts) == 40
    assert (config.rl.ppo.clip, config.rl.ppo.kl_coef, config.seed) == (0.3, 1e-3, 2)


@pytest.mark.parametrize("name", ["1e3", "inf", "nan", "run-7", "seed 1"])
def test_a_name_given_by_set_is_text_where_yaml_reads_text(name: str) -> None:
    assert load("quickstart", [f"name={name}"]).name == name


def test_own_data_needs_no_toy_world(tmp_path: Path) -> None:
    config = load(str(write(tmp_path, OWN_DATA)))
    assert config.data.toyworld is None and config.data.preferences[0].path == "preferences.jsonl"
    assert load(str(write(tmp_path, dump(config)))) == config


def test_a_config_cannot_be_changed() -> None:
    config = load("quickstart")
    with pytest.raises(ValidationError, match="frozen"):
        config.rl.ppo.clip = 0.5  # type: ignore[misc]


def test_rollouts_that_are_not_the_policy_s_are_refused() -> None:
    (mistake,) = [line for line in mistakes("quickstart", "rollout.top_p=0.9") if "top_p" in line]
    assert (
        "rollout.top_p is refused" in mistake
        and "only rollout.temperature shapes rollouts" in mistake
    )


# ---- unknown keys
# ------------------------------------------------------------------------------------------


def misspelled(dotted: str) -> tuple[list[str], str]:
    """The keys of a field with its last one misspelled, and the right one."""
    *above, right = dotted.split(".")
    middle = len(right) // 2
    return [*above, right[:middle] + right[middle - 1 :]], right  # one letter doubled


@pytest.mark.parametrize(
    "dotted", [setting.name for group in groups() for setting in group.settings]
)
def test_an_unknown_key_names_its_line_and_the_nearest_key(dotted: str, tmp_path: Path) -> None:
    keys, right = misspelled(dotted)
    assert keys[-1] != right
    lines = ["# a comment", ""]
    for depth, key in enumerate(keys):
        item = "- " if depth == 2 and tuple(keys[:2]) in LISTED else ""
        lines.append("    " * depth + item + key + (": 1" if depth == len(keys) - 1 else ":"))
    path = write(tmp_path, "\n".join(lines) + "\n")
    shown = ".".join(
        [*keys[:2], "0", keys[2]] if tuple(keys[:2]) in LISTED and len(keys) == 3 else keys
    )
    assert f"{path}:{len(lines)}: unknown key {shown!r}; did you mean {right!r}?" in mistakes(path)
    if shown == ".".join(keys):
        override = f"{shown}=1"
        assert f"--set {override}: unknown key {shown!r}; did you mean {right!r}?" in mistakes(
            "quickstart", override
        )


@pytest.mark.parametrize("section", ["model", "data", "rl", "publish"])
def test_an_unknown_section_names_the_nearest_one(section: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"name: x\n{section}s: {{}}\n")
    assert f"{path}:2: unknown key '{section}s'; did you mean '{section}'?" in mistakes(path)


def test_a_key_unlike_any_other_lists_the_known_ones() -> None:
    assert mistakes("quickstart", "rl.ppo.zzzz=1") == [
        "--set rl.ppo.zzzz=1: unknown key 'rl.ppo.zzzz'; known keys: learning_rate, kl_coef, "
        "kl_target, kl_horizon, kl_loss, whiten, clip, clip_high, dual_clip"
    ]


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model:\n  scratch: {}\n  tempalte: x\ndata: {toyworld: {}}\nrl:\n  iterations: none\n",
    )
    told = mistakes(path, "sft.epoch=2")
    assert len(told) == 3
    assert {line.split(": ")[0] for line in told} == {f"{path}:3", f"{path}:6", "--set sft.epoch=2"}


# ---- wrong values
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, wrong, right",
    [
        ("seed", "-1", "0"),
        ("seed", "2147483648", "2147483647"),
        ("seed", "1.5", "1"),
        ("rl.iterations", "0", "1"),
        ("rl.iterations", "many", "20"),
        ("rl.iterations", "null", "20"),
        ("rl.gamma", "1.01", "1"),
        ("rl.gamma", "-0.01", "0"),
        ("rl.gamma", "nan", "0.5"),
        ("rl.reward_clip", "0", "null"),
        ("rl.value_clip", "-1", "0.1"),
        ("rl.importance_cap", "0.99", "1"),
        ("rl.ppo.clip", "0", "0.1"),
        ("rl.ppo.kl_coef", "-0.1", "0"),
        ("rl.apa.anchor", "new", "old"),
        ("rl.gspo.clip", "0", "1e-3"),
        ("rl.gspo.clip", "1", "0.5"),
        ("rl.gspo.clip_high", "0", "1.5"),
        ("rl.cispo.clip_high", "0", "0.2"),
        ("rl.dr_grpo.answer_tokens", "0", "1"),
        ("rl.monitor.max_equal_groups", "1.01", "1"),
        ("rl.algorithms", "[]", "[apa]"),
        ("rl.algorithms", "[dpo]", "[ppo]"),
        ("rl.algorithms", "ppo", "[ppo]"),
        ("rl.ppo.whiten", "perhaps", "false"),
        ("rl.ppo", "3", "{clip: 0.1}"),
        ("model.dtype", "float16", "bfloat16"),
        ("model.scratch.vocab_size", "299", "300"),
        ("model.context_tokens", "15", "64"),
        ("data.toyworld.label_noise", "0.5", "0.3"),
        ("data.toyworld.answers_per_ranking", "1", "2"),
        ("data.heldout_fraction", "0", "0.5"),
        ("sft.optimizer.betas", "[0.9]", "[0.9, 0.99]"),
        ("sft.optimizer.betas", "[0.9, 1.1]", "[0, 1]"),
        ("sft.optimizer.zero_stage", "4", "3"),
        ("sft.optimizer.learning_rate", "0", "1e-5"),
        ("reward.loss", "hinge", "pairs"),
        ("sample.samples_per_prompt", "1", "2"),
        ("rollout.gpu_memory_fraction", "1", "0.99"),
        ("rollout.weight_transfer", "ssh", "object_store"),
        ("evaluate.prompts", "0", "1"),
        ("publish.port", "65536", "65535"),
        ("publish.port", "-1", "0"),
        ("resources.policy.gpus", "-1", "1"),
        ("resources.policy.workers", "0", "2"),
        ("cluster.call_timeout_s", "0", "1"),
        ("name", "[a]", "a"),
    ],
)
def test_values_out_of_bounds_are_refused_and_others_not(
    field: str, wrong: str, right: str, tmp_path: Path
) -> None:
    load("quickstart", [f"{field}={right}"])
    told = mistakes("quickstart", f"{field}={wrong}")
    assert all(line.startswith(f"--set {field}={wrong}: {field}") for line in told), told
    values = load("quickstart").model_dump(mode="json")
    *above, last = field.split(".")
    section = values
    for key in above:
        section = section[key]
    section[last] = yaml.safe_load(wrong)
    text = yaml.safe_dump(values, sort_keys=False)
    path = write(tmp_path, text)
    for line in mistakes(path):
        found = re.fullmatch(rf"{re.escape(str(path))}:(\d+): (.+) is (.+)", line)
        assert found and found[2].startswith(field), line
        at = text.splitlines()[int(found[1]) - 1].strip()
        assert at.startswith((f"{last}:", "- ")), "the line of the key, or of an item of its list"


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\n")
    assert sorted(mistakes(path)) == [f"{path}: data is missing", f"{path}: model is missing"]
    path = write(tmp_path, OWN_DATA.replace("[{path: prompts.jsonl}]", "[{format: auto}]"))
    assert mistakes(path) == [f"{path}:5: data.prompts.0.path is missing"]


# ---- values that do not fit each other
# -----------------------------------------------------------------------


def test_a_step_that_does_not_divide_names_the_nearest_that_does() -> None:
    rng = random.Random(0)
    refused = 0
    for _ in range(30):
        prompts, samples, step = rng.randint(1, 40), rng.randint(1, 8), rng.randint(1, 200)
        shape = [f"rl.prompts_per_iteration={prompts}", f"rl.samples_per_prompt={samples}"]
        answers = prompts * samples
        if answers % step == 0:
            assert (
                load("quickstart", [*shape, f"rl.samples_per_step={step}"]).rl.samples_per_step
                == step
            )
            continue
        refused += 1
        (told,) = mistakes("quickstart", *shape, f"rl.samples_per_step={step}")
        assert f"rl.samples_per_step {step} does not divide" in told and f"= {answers};" in told
        near = int(told.rsplit(" ", 1)[1])
        best = min(abs(n - step) for n in range(1, answers + 1) if answers % n == 0)
        assert answers % near == 0 and abs(near - step) == best
        load("quickstart", [*shape, f"rl.samples_per_step={near}"])
    assert refused > 15


def test_a_width_that_heads_do_not_divide_names_one_that_they_do() -> None:
    for hidden, heads in ((129, 4), (191, 3), (65, 2), (258, 4)):
        (told,) = mistakes(
            "quickstart", f"model.scratch.hidden_size={hidden}", f"model.scratch.heads={heads}"
        )
        assert f"hidden_size {hidden} is not a multiple of heads {heads}" in told
        load(
            "quickstart",
            [f"model.scratch.hidden_size={told.rsplit(' ', 1)[1]}", f"model.scratch.heads={heads}"],
        )


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["model.path=base"], "exactly one of model.path .* and model.scratch"),
        (["model.scratch=null"], "exactly one of model.path .* and model.scratch"),
        (["data.prompts=[{path: a}]"], r"remove data\.prompts or data\.toyworld"),
        (
            ["data.toyworld=null", "evaluate.judge=reward_model"],
            r"data\.conversations lists no source",
        ),
        (
            ["model.context_tokens=40", "rollout.max_new_tokens=40"],
            r"max_new_tokens 40 leaves no room .*context_tokens 40",
        ),
        (
            ["data.toyworld.evaluation_prompts=20", "evaluate.prompts=21"],
            "prompts 21 is more than .*evaluation_prompts 20",
        ),
        (
            ["rl.iterations=3", "rl.critic_warmup_iterations=3"],
            "critic_warmup_iterations 3 leaves no iteration of .* 3",
        ),
        (
            ["sft.optimizer.offload=true"],
            r"sft\.optimizer\.offload works with GPUs and zero_stage 2 .*train\.gpus is 0",
        ),
        (
            ["rl.optimizer.offload=true", "rl.optimizer.zero_stage=3"],
            r"rl\.optimizer\.offload works with GPUs",
        ),
        (
            ["rl.optimizer.offload=true", "rl.optimizer.zero_stage=3", "resources.train.gpus=1"],
            r"policy\.gpus is 0",
        ),
        (["sample.training.optimizer.offload=true"], r"sample\.training\.optimizer\.offload"),
        (
            ["rl.sequence_parallel=2", "resources.policy.workers=3", "resources.critic.workers=2"],
            r"sequence_parallel 2 does not divide resources\.policy\.workers 3; nearest that "
            r"does: 4",
        ),
        (
            ["rl.sequence_parallel=2", "resources.policy.workers=2"],
            r"does not divide resources\.critic\.workers 1",
        ),
        (
            ["rl.sequence_parallel=2", "rl.shared_prompts=false"],
            r"shared_prompts false has no effect .*parallel 2",
        ),
        (
            ["resources.train.gpus=2"],
            r"resources\.train\.gpus is 2, but a process of this role uses one GPU at most",
        ),
        (
            ["resources.rollout.gpus=1.5"],
            r"resources\.rollout\.gpus is 1\.5; above 1 it must be whole",
        ),
        (
            ["rollout.weight_transfer=nccl"],
            r"nccl needs GPUs on both sides; resources\.policy\.gpus is 0",
        ),
        (
            ["publish.model=ppo", "rl.algorithms=[apa]"],
            r"publish\.model is ppo, which rl\.algorithms \(apa\) does not",
        ),
        (["model.scratch.heads=16"], r"hidden_size / heads = 8; vLLM on the CPU takes 32, 64"),
        (
            ["reward.optimizer.offload=true", "resources.train.gpus=1"],
            r"reward\.optimizer\.offload .* zero_stage 1",
        ),
        (
            ["rl.old_logprobs=rollout"],
            r"old_logprobs rollout is for losses with a ratio .* which apa has not",
        ),
        (
            ["rl.algorithms=[rloo]", "rl.critic_warm_gate=1"],
            r"critic_warm_gate has no effect on rloo, which",
        ),
        (
            ["rl.algorithms=[grpo]", "rl.critic_warmup_iterations=1"],
            r"critic_warmup_iterations has no effect on grpo",
        ),
        (
            ["resources.policy.workers=2", "resources.policy.gpus=0.5"],
            r"policy has 2 workers with 0\.5 GPU each",
        ),
        (
            ["resources.rollout.gpus=2"],
            r"engines of several GPUs take weights from GPUs only, .* resources\.reference",
        ),
        (
            ["resources.rollout.gpus=0.5"],
            r"gpu_memory_fraction 0\.85 is more than an engine's share .*rollout\.gpus 0\.5",
        ),
        (
            ["rl.mode=colocate"],
            r"shares that add up to .*; here: resources\.rollout 1 x 0, resources\.policy 1 x 0",
        ),
        (
            ["rl.mode=colocate", "resources.rollout.gpus=1", "resources.policy.gpus=1"],
            r"shares that add up to more than",
        ),
        (
            [
                "rl.mode=colocate",
                "resources.rollout={gpus: 0.5, workers: 2}",
                "resources.policy.gpus=0.5",
            ],
            r"as many engines as ranks of policy and critic; here: resources\.rollout 2 x 0\.5, "
            r"resources\.policy 1 x 0\.5",
        ),
        (
            [
                "rl.mode=colocate",
                "resources.rollout.gpus=0.5",
                "resources.policy.gpus=0.5",
                "rl.optimizer.zero_stage=3",
            ],
            r"can move the states of ZeRO-3 only with rl\.optimizer\.offload true",
        ),
        (
            [
                "rl.mode=colocate",
                "resources.rollout={gpus: 0.5, workers: {min: 1, max: 2}}",
                "resources.policy={gpus: 0.5, workers: 2}",
            ],
            r"resources\.rollout\.min_workers does not work with rl\.mode colocate",
        ),
        (
            ["resources.rollout.workers={min: 3, max: 2}"],
            r"resources\.rollout.*min_workers 3 is more than resources\.rollout\.workers 2",
        ),
    ],
)
def test_values_that_contradict_each_other(overrides: list[str], told: str) -> None:
    line = mistakes("quickstart", *overrides)[0]
    assert re.search(told, line), line


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["rl.mode=colocate", "rollout.weight_transfer=nccl", *(
                f"resources.{name}.gpus=0.4" for name in ("rollout", "policy", "reference")
            )],
            "NCCL refuses two ranks on one",
        ),
        (
            ["rollout.weight_transfer=ipc", *(
                f"resources.{name}.gpus=1" for name in ("rollout", "policy", "reference")
            )],
            "hands over memory within one GPU",
        ),
        (
            ["resources.reference.gpus=0.5", "resources.reference.workers=2"],
            "ranks of one model need one each",
        ),
    ],
)  # fmt: skip
def test_places_that_cannot_work_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("quickstart", settings)


def test_offload_works_where_there_are_gpus() -> None:
    config = load(
        "quickstart",
        ["sft.optimizer.offload=true", "sft.optimizer.zero_stage=2", "resources.train.gpus=1"],
    )
    assert config.sft.optimizer.offload


def test_the_gold_judge_needs_the_toy_world(tmp_path: Path) -> None:
    told, others = mistakes(write(tmp_path, OWN_DATA + "evaluate: {judge: gold}\n"))
    assert "run too: sft, reward, sample, rl, publish; `sft: null` leaves one out" in others
    assert "gold exists only in data.toyworld" in told and "reward_model" in told


@pytest.mark.parametrize("missing", SOURCES)
def test_each_list_of_sources_is_needed(missing: str, tmp_path: Path) -> None:
    told, others = mistakes(
        write(tmp_path, OWN_DATA.replace(f"  {missing}: [{{path: {missing}.jsonl}}]\n", ""))
    )
    assert f"data.{missing} lists no source" in told
    assert (
        "that the config does not name run too: sft, reward, sample, rl, evaluate, publish; "
        "`sft: null`" in others
    )


@pytest.mark.parametrize(
    "text, overrides, told",
    [
        (
            "sft:\n",
            [],
            r"my.yaml:7: sft is empty: write `sft: \{\}` for its defaults or `sft: null` to leave",
        ),
        (
            "sft: no\n",
            [],
            r"my.yaml:7: sft is False: expected settings, or null to leave the stage out",
        ),
        (
            "dpo: null\n",
            ["dpo.beta=0.2"],
            r"--set dpo.beta=0.2: .*my.yaml:7 says dpo: null, .*; --set dpo=\{\} before it",
        ),
        ("", ["sft="], r"--set sft= gives nothing: null leaves the stage out"),
        (
            "scoring.sources: []\n",
            [],
            r"'scoring.sources' is one key; in YAML sources stands below scoring: `scoring: \{",
        ),
        (
            "scoring: {sources: [{path: x}]}\n",
            [],
            r"my.yaml:7: unknown key 'scoring.sources.0.path'; did you mean 'paths'",
        ),
    ],
)
def test_what_is_no_section_says_how_to_write_one(
    text: str, overrides: list[str], told: str, tmp_path: Path
) -> None:
    found = mistakes(write(tmp_path, OWN_DATA + text), *overrides)
    assert re.search(told, found[0]), found
    assert not any("at least 1 item" in line for line in found), (
        "what follows from a mistake is none"
    )


def test_a_mistake_in_a_field_does_not_hide_what_is_missing(tmp_path: Path) -> None:
    text = OWN_DATA.replace("  prompts: [{path: prompts.jsonl}]\n", "") + "sft: {epochs: 0}\n"
    found = mistakes(write(tmp_path, text))
    assert any("sft.epochs is 0" in line for line in found) and any(
        "data.prompts lists no" in line for line in found
    )


# ---- mistakes of form
# --------------------------------------------------------------------------------------


def test_no_such_config_lists_the_presets() -> None:
    (told,) = mistakes("quikstart")
    assert told.startswith("quikstart: no such file, and no such preset") and all(
        name in told for name in NAMES
    )
    mistakes("elsewhere/quickstart.yaml")


@pytest.mark.parametrize(
    "text, told",
    [
        ("model: [1, 2", "not valid YAML"),
        ("model:\n\tpath: x\n", "not valid YAML"),
        ("- a\n- b\n", "found list"),
        ("just text", "found str"),
        ("5", "found int"),
    ],
)
def test_a_file_that_is_no_config(text: str, told: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    line = mistakes(path)[0]
    assert line.startswith(f"{path}: ") and told in line


@pytest.mark.parametrize(
    "override, told",
    [
        ("rl.iterations", "expected key=value"),
        ("rl.iterations.x=3", "rl.iterations is a value, not a section"),
        ("=3", "unknown key ''"),
        ("name=[a", "not valid YAML"),
        ("name=@a", "not valid YAML"),
    ],
)
def test_a_set_that_is_none(override: str, told: str) -> None:
    line = mistakes("quickstart", override)[0]
    assert line.startswith(f"--set {override}: ") and told in line


# ---- fingerprints
# ------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_any_change_of_a_section_and_nothing_else() -> None:
    config = load("quickstart")
    assert fingerprint(config) == fingerprint(load("quickstart")) != fingerprint(config.rl)
    assert (
        fingerprint({"a": 1, "b": [2]})
        == fingerprint({"b": [2], "a": 1})
        != fingerprint({"a": 1, "b": [3]})
    )
    seen = {fingerprint(config)}
    changes = [
        "seed=99",
        "rl.gamma=0.5",
        "rl.value_clip=null",
        "rl.ppo.whiten=false",
        "rl.algorithms=[apa]",
        "rl.algorithms=[ppo]",
        "sft.optimizer.betas=[0.5, 0.95]",
        "model.dtype=bfloat16",
        "data.toyworld.label_noise=0.2",
        "resources.rollout.workers=2",
        "rl.ppo.clip=0.25",
        "rl.apa.kl_coef=0.25",
    ]
    for change in changes:
        seen.add(fingerprint(load("quickstart", [change])))
    assert len(seen) == 1 + len(changes)
