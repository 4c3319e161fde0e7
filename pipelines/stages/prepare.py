"""Stage 1: read or generate the data, train or load the tokenizer, and account for every row.

Writes normalised records (conversations, rankings, held-out rankings, judge rankings, prompts,
evaluation prompts), the tokenizer with its chat template, a base model with random weights where
the config asks for one, and report.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rayward.configs.needs import lists_read
from rayward.configs.schema import Config
from rayward.configs.sections.data import LISTS
from rayward.configs.sections.model import Model
from rayward.configs.stages import has, trains_judge
from rayward.data.model_files.hub_models import config_of, local
from rayward.data.records import Conversation, Ranking, Turn, to_json
from rayward.data.templates.behaviour import SYSTEM, behaviour, unlike_own
from rayward.data.templates.jinja import jinja
from rayward.data.templates.published.rendering import DATE, TODAY, render
from rayward.data.templates.published.template import PROBE
from rayward.data.templates.saved_tokenizer import (
    assert_keeps_text,
    assert_served_as_trained,
    save_tokenizer,
)
from rayward.data.templates.special_tokens import own_special_tokens
from rayward.data.templates.template import Template, end_token, find, stop_token_ids, text
from rayward.data.templates.tokenizer import give_pad, tokenizer_of, train_tokenizer
from rayward.data.toy import toyworld
from rayward.pipelines.rows import quality
from rayward.pipelines.rows.reading import contents, generate, read_all
from rayward.pipelines.rows.renderer import Renderer
from rayward.pipelines.rows.rows import (
    FURTHER,
    LeftOut,
    fit_conversations,
    fit_prompts,
    fit_rankings,
)
from rayward.pipelines.rows.splitting import FILES, divide
from rayward.pipelines.run.stage import (
    Metrics,
    Run,
    StageError,
    begin,
    table,
    write_json,
    write_jsonl,
)


def prepare(run: Run) -> dict[str, Any] | None:
    """Do the stage; None if it was done before."""
    config = run.config
    stage = begin(run, "prepare", more={"files": contents(config.data)})
    if stage is None:
        return None
    report: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    if config.data.toyworld:
        records, metrics["label_noise"] = generate(config)
    else:
        records = {name: list(read_all(config.data, name, report)) for name in LISTS}
    conversations = records["conversations"]
    renderer, report["template"] = _renderer(
        config, stage.folder, conversations, records["preferences"]
    )
    if config.sft.quality.conditioning or config.sft.quality.weighting:
        report["classes"] = quality.check(config.sft.quality, renderer.template, conversations)

    dropped = {name: LeftOut() for name in FILES}
    split = divide(records, config, dropped)
    prompts = partial(fit_prompts, max_new_tokens=config.rollout.max_new_tokens)
    fit: dict[str, Callable[..., Any]] = {
        "conversations": partial(fit_conversations, sft=config.sft),
        "preferences": fit_rankings,
        "prompts": prompts,
        "evaluation_prompts": prompts,
    }
    with Metrics(stage.folder, "prepare", len(FILES), "set") as progress:
        for number, (name, source) in enumerate(FILES.items()):
            given = len(split[name])
            split[name] = fit[source](split[name], renderer, dropped=dropped[name])[0]
            progress.log(number, {"set": name, "rows": given, "kept": len(split[name])}, ("kept",))

    for name in FILES:
        split[name] = with_ids(split[name])
        write_jsonl(stage.folder / f"{name}.jsonl", [to_json(record) for record in split[name]])
    report["kept"] = {name: len(split[name]) for name in FILES}
    report["rules"] = {name: dict(counts) for name, counts in dropped.items() if counts}
    report["left_out"] = [row for counts in dropped.values() for row in counts.rows]
    if not config.data.toyworld:
        _check_account(records, report)
    else:
        metrics["noise_ceiling"] = _noise_ceiling(split["heldout"])
    write_json(stage.folder / "report.json", report)
    _require(split, config, report["rules"])
    if config.model.scratch:
        _base_model(config, renderer, stage.folder / "base")
    for name in FILES:
        metrics[name] = len(split[name])
    metrics["vocabulary"] = len(renderer.tokenizer)
    table("prepare", {name.replace("_", " "): value for name, value in metrics.items()})
    return stage.finish(metrics)


def with_ids(records: Iterable[Any]) -> list[Any]:
    """The records, each with an id of its own: rows that came without one, or with one seen before,
    get a number.
    """
    seen: set[str] = set()
    made = []
    for number, record in enumerate(records):
        label = record.id
        if not label or label in seen:
            label = f"{record.id or record.source or 'row'}#{number}"
        seen.add(label)
        made.append(replace(record, id=label))
    return made


def _renderer(
    config: Config, folder: Path, conversations: list[Conversation], rankings: list[Ranking]
) -> tuple[Renderer, dict[str, Any]]:
    """Train or load the tokenizer, give it the chat template and its end token, and save it. With
    what is told of the template, which is printed here. Raises StageError where what is served
    would not be what is trained."""
    template, path = (
        find(config.model.template),
        local(config.model.path) if config.model.path else None,
    )
    told: list[str] = []
    if config.model.scratch:
        texts = itertools.chain(
            (text(template, c.turns) for c in conversations),
            (text(template, (*r.turns, Turn("assistant", a))) for r in rankings for a in r.answers),
        )
        tokenizer = train_tokenizer(
            texts,
            config.model.scratch.vocab_size,
            template.special_tokens,
            config.model.context_tokens,
        )
    else:
        assert path is not None
        tokenizer, read = tokenizer_of(path)
        _require_end_token(config.model, path, template, tokenizer)
        own = behaviour(tokenizer) if template.own else [unlike_own(template, tokenizer)]
        made = _make_special(template, tokenizer)
        told = [*([f"the tokenizer: {read}"] if read else []), *made, *filter(None, own)]
        _set_end_token(template, tokenizer)
        give_pad(tokenizer, path, stop_token_ids(template, tokenizer))
    for line in told:
        print(f"   chat template {template.name}: {line}", flush=True)
    if not template.own:
        tokenizer.chat_template = jinja(template, tokenizer)
    try:
        assert_keeps_text(tokenizer)
        save_tokenizer(tokenizer, folder / "tokenizer", config_of(path) if path else None)
        renderer = Renderer.of(config.model, folder / "tokenizer")
        assert_served_as_trained(template, renderer.tokenizer)
    except ValueError as error:
        raise StageError(f"model.path {path}: {error}" if path else str(error)) from error
    return renderer, {"name": template.name, "ends": end_token(template, tokenizer), "told": told}


def _make_special(template: Template, tokenizer: Any) -> list[str]:
    """Make the tokens special that a template of the table needs so, for the run: else who writes
    one in a message speaks as the template does. What there is to say of it."""
    held = {*own_special_tokens(tokenizer)}
    if template.own or not (
        open_tokens := [token for token in template.special_tokens if token not in held]
    ):
        return []
    tokenizer.add_special_tokens(
        {"extra_special_tokens": open_tokens}, replace_extra_special_tokens=False
    )
    return [
        f"{', '.join(map(repr, open_tokens))} become special in the run: the tokenizer holds them "
        "as ordinary ones"
    ]


def _set_end_token(template: Template, tokenizer: Any) -> None:
    """Make what ends an answer the tokenizer's end token, and pin the day that its own template
    writes.

    A template that writes the end token of the model's folder elsewhere (Phi-3's, after the last
    turn) keeps it.
    """
    end = end_token(template, tokenizer)
    if not template.own:
        tokenizer.eos_token = end
        return
    if "strftime_now" in tokenizer.get_chat_template():
        tokenizer.init_kwargs[DATE] = TODAY
    published, before = tokenizer.eos_token, _renderings(tokenizer)
    tokenizer.eos_token = end
    if _renderings(tokenizer) != before:
        tokenizer.eos_token = published


def _renderings(tokenizer: Any) -> list[str | None]:
    """What the tokenizer's own template makes of a few conversations, None where it raises."""
    made: list[str | None] = []
    for turns in (PROBE[:2], PROBE, (SYSTEM, *PROBE[:2])):
        try:
            made.append(render(tokenizer, turns, [turn.content for turn in turns], False))
        except Exception:  # a template is a foreign program: it raises what it likes, at a system turn for instance
            made.append(None)
    return made


def _require_end_token(model: Model, path: str, template: Template, tokenizer: Any) -> None:
    """Raise StageError where the model of a folder has no embedding for a token that the template
    needs.
    """
    try:
        ends = stop_token_ids(template, tokenizer)
    except ValueError as error:
        own = (
            "; or take the model's own: model.template: tokenizer"
            if tokenizer.chat_template
            else ""
        )
        raise StageError(
            f"model.path {model.path}, model.template {model.template}: {error}{own}"
        ) from error
    rows = config_of(path).get_text_config().vocab_size
    if (end := max(ends)) >= rows:
        raise StageError(
            f"model.path {model.path}: {tokenizer.convert_ids_to_tokens(end)!r}, which ends an "
            f"answer of {model.template}, is token {end}, but the model has {rows} embeddings; "
            f"rayward extend {model.path} --template {model.template} --out DIR makes a model "
            "that has it"
        )


def _base_model(config: Config, renderer: Renderer, folder: Path) -> None:
    from rayward.actors.models.load import build_from_scratch, save_model

    assert config.model.scratch is not None
    model = build_from_scratch(
        config.model.scratch, renderer.tokenizer, config.model.context_tokens, config.seed
    )
    save_model(model, model.state_dict(), renderer.tokenizer, folder)


def _noise_ceiling(heldout: list[Ranking]) -> float:
    """Pair accuracy of the gold judge itself on the noisy held-out rankings; its ties count
    half.
    """
    right = pairs = 0.0
    for ranking in heldout:
        gold = [toyworld.judge(ranking.turns, answer) for answer in ranking.answers]
        for better, worse in itertools.combinations(gold, 2):
            right += 1.0 if better > worse else 0.5 if better == worse else 0.0
            pairs += 1
    return right / max(pairs, 1)


def _check_account(records: dict[str, list], report: dict[str, Any]) -> None:
    """Every row read is kept or dropped by a named rule; a programming error shows here, not in the
    data.
    """
    kept, rules = report["kept"], report["rules"]
    for name in LISTS:
        counted = sum(
            kept[file]
            - rules.get(file, {}).get(FURTHER, 0)
            + sum(n for rule, n in rules.get(file, {}).items() if not rule.startswith("kept"))
            for file, source in FILES.items()
            if source == name
        )
        if counted != len(records[name]):
            raise AssertionError(
                f"data.{name}: {len(records[name])} records came in, {counted} are accounted for"
            )


def _require(split: dict[str, list], config: Config, rules: dict[str, dict[str, int]]) -> None:
    least_of = dict.fromkeys(
        (name for name, source in FILES.items() if source in lists_read(config)), 1
    )
    least_of |= {"judge": int(trains_judge(config))}
    if has(config, "evaluate"):
        least_of["evaluation_prompts"] = config.evaluate.prompts
    for name, least in least_of.items():
        if len(split[name]) < least:
            lost = [
                f"{count} x {rule}"
                for rule, count in rules.get(name, {}).items()
                if not rule.startswith("kept")
            ]
            left_out = f"left out: {'; '.join(lost)}; " if lost else ""
            raise StageError(
                f"{name.replace('_', ' ')}: {len(split[name])} rows are left, at least {least} "
                f"{'are needed' if least > 1 else 'is needed'}"
                f"{' (evaluate.prompts)' if name == 'evaluation_prompts' else ''}; "
                f"{left_out}report.json in the stage's folder says what became of the others"
            )
