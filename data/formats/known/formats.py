"""The formats that are known: by which fields a row of each is recognised, and its reader."""

from __future__ import annotations

from functools import partial

from rayward.data.formats.files import token_rows
from rayward.data.formats.known.compared import COMPARED
from rayward.data.formats.known.format import Format
from rayward.data.formats.known.format import make_format as _format
from rayward.data.formats.known.plain import PLAIN
from rayward.data.formats.readers import chat, pairs, questions, ranked
from rayward.data.formats.readers import labelled as labels
from rayward.data.formats.readers.exchanges import ASKING, SAYING
from rayward.data.formats.readers.margins import MARGINS
from rayward.data.formats.rows.fields import EVERYTHING

__all__ = ["FORMATS", "TOKENS", "Format"]

# Not in FORMATS, whose rows are objects and whose records are text.
TOKENS = _format(token_rows.NAME, lambda row, repairs: [], reads=EVERYTHING)
STARLING = "question_id prompt response_a response_b"
VOTES = " ".join(pairs.ANNOTATORS)
# Of answers that are measured, not recommended: one with a low score is nothing to imitate.
SCORES = "score scores rating helpfulness"


def said_in(name: str) -> str:
    """The fields of an exchange in the list `name`."""
    return " ".join(f"{name}.{speaker}" for speaker in (*ASKING, *SAYING))


# `never` names fields of other formats, known here or not, that have the same keys in another
# sense: such a row would be read wrongly. Of two entries that fit with equally many keys, the first
# one is taken.
FORMATS: dict[str, Format] = {
    form.name: form
    for form in (
        # Which refuses a field that it does not know.
        _format("rayward", chat.rayward, "kind turns", reads=EVERYTHING),
        _format(
            "sharegpt",
            chat.sharegpt,
            "conversations",
            "items",
            never="chosen rejected",
            reads=f"id model @conversations @items {said_in('conversations')}",
        ),
        _format(
            "alpaca",
            chat.alpaca,
            "instruction output",
            "instruction response",
            never="generator dataset instances completions chosen rejected",
            reads="id instruction input context output response",
        ),
        _format(
            "self_instruct",
            chat.self_instruct,
            "instruction instances",
            reads="id instruction instances.input instances.output",
        ),
        _format(
            "gsm8k",
            chat.gsm8k,
            "question answer",
            never="ground_truth choices options context",
            reads="id question answer",
        ),
        _format(
            "gsm8k_solutions",
            ranked.gsm8k_solutions,
            "question ground_truth",
            reads="id question ground_truth *.is_correct *.solution",
        ),
        _format(
            "kto",
            labels.kto,
            "messages label",
            "prompt completion label",
            never="chosen rejected",
            reads="id @messages @prompt @completion label",
        ),
        _format(
            "prompt_completion",
            questions.prompt_completion,
            "prompt completion",
            "prompt response",
            "prompt output",
            never=f"{SCORES} messages chosen rejected",
            reads="id @prompt @completion @response @output",
        ),
        _format(
            "prompts",
            questions.prompts,
            "prompt",
            "prompt data_source reward_model",
            never=(
                f"{SCORES} messages conversations conversation chosen rejected completion "
                "completions response responses output answers response_a response_b text "
                "response_0 response_1 response_2 response1 response2 output_1 output_2 "
                "chosen_response rejected_response ranking_order model_ranking"
            ),
            reads="id @prompt data_source",
        ),
        _format(
            "orca",
            questions.orca,
            "question response",
            never=f"{SCORES} choices options context chosen rejected",
            reads="id question response",
        ),
        _format(
            "conversation",
            questions.conversation,
            "conversation",
            never="chosen rejected",
            reads=f"id source @conversation {said_in('conversation')}",
        ),
        _format(
            "sharegpt_pairs",
            pairs.sharegpt_pairs,
            "conversations chosen rejected",
            reads=f"id @conversations @chosen @rejected {MARGINS}",
        ),
        _format(
            "pandalm",
            pairs.pandalm,
            "instruction response1 response2 annotator1",
            reads=f"id idx question_id instruction input response1 response2 {VOTES}",
        ),
        _format(
            "arena",
            pairs.arena,
            "prompt response_a response_b winner",
            "prompt response_a response_b",
            reads=f"id idx {STARLING} winner",
        ),
        # Two data sets with the same fields, which differ in the place of the better answers.
        _format(
            "starling_truthful",
            partial(ranked.starling, "truthful", "ac", "b"),
            reads=f"{STARLING} response_c",
        ),
        _format("starling_verbose", partial(ranked.starling, "verbose", "b", "a"), reads=STARLING),
        _format(
            "alpaca_eval_annotations",
            pairs.alpaca_eval_annotation,
            "instruction output_1 output_2 preference",
            reads="id idx question_id instruction input output_1 output_2 preference",
        ),
        _format(
            "alpaca_eval",
            chat.alpaca_eval,
            "instruction output generator",
            "instruction dataset",
            "instruction",
            never=(
                "input instances completions response response1 output_1 chosen rejected "
                "chosen_response"
            ),
            reads="id instruction output generator",
        ),
        _format(
            "hh_rlhf",
            pairs.chosen_rejected,
            "chosen rejected",
            never="prompt messages conversations instruction question",
            reads=f"id @chosen @rejected {MARGINS}",
        ),
        _format(
            "question_pairs",
            pairs.question_pairs,
            "question chosen rejected",
            "instruction chosen rejected",
            never="prompt messages conversations",
            reads=f"id question instruction input @chosen @rejected {MARGINS}",
        ),
        _format(
            "nectar",
            ranked.nectar,
            "prompt answers",
            never="ranking_order model_ranking",
            reads="id prompt source answers.answer answers.rank num_responses num_response",
        ),
        _format(
            "openai",
            pairs.openai,
            "messages",
            "prompt chosen rejected",
            "messages chosen rejected",
            reads=f"id @messages @prompt @chosen @rejected {MARGINS}",
        ),
        _format("ultrachat", chat.ultrachat, "data", "id data", never="class", reads="id data"),
        _format("ultra_eval", chat.ultra_eval, "class data", reads="id class data"),
        _format(
            "crlft",
            chat.crlft,
            "items condition",
            "items system",
            reads="id @items condition system",
        ),
        _format(
            "ultrafeedback",
            ranked.ultrafeedback,
            "instruction completions",
            reads=(
                "id source instruction completions.response completions.annotations.*.Rating "
                "completions.fine-grained_score completions.overall_score"
            ),
        ),
        _format(
            "mt_bench_questions",
            chat.mt_bench_question,
            "question_id turns",
            reads="question_id category turns reference",
        ),
        # Their rows do not hold the questions; `outcomes` puts in those of the question file.
        _format(
            "mt_bench_answers",
            partial(chat.mt_bench_answer, {}),
            "question_id choices",
            "question_id model_id text",
            reads="question_id model_id choices.turns text",
        ),
        _format(
            "rewardbench",
            pairs.rewardbench,
            "prompt chosen rejected subset",
            never="messages",
            reads=f"id @prompt @chosen @rejected {MARGINS} subset num_correct num_incorrect",
        ),
        _format(
            "rm_bench",
            pairs.rm_bench,
            "prompt chosen rejected domain",
            never="messages",
            reads=f"id @prompt @chosen @rejected {MARGINS} domain",
        ),
        *COMPARED,
        *PLAIN,
    )
}
