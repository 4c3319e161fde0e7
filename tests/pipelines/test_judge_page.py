"""`rayward judge page`: the page in a real browser without a network, with hostile texts in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rayward.pipelines.cli import main

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "alpaca_eval" / "results"
EVIL = (
    '</script><img src=x onerror="window.bad=1"><b>bold</b> &lt; <!--<script>window.bad=2</script>'
)
CATEGORIES = ("math", "writing", "coding")


def review(order: str, baseline: int, model: int, text: str) -> dict[str, Any]:
    preference = 1.5 + 0.5 * ((model > baseline) - (model < baseline))
    return {
        "order": order,
        "sample": 0,
        "text": text,
        "scores": [baseline, model],
        "verdict": None,
        "preference": preference,
    }


def row(number: int, **more: Any) -> dict[str, Any]:
    """A verdict: of three questions one each is won, lost and a tie, the tie by a conflict."""
    scores = [((7, 9), (7, 9)), ((8, 6), (8, 6)), ((5, 7), (7, 5))][number % 3]
    reviews = [
        review(order, *pair, f"review {number} with the {order}")
        for order, pair in zip(("model first", "baseline first"), scores, strict=True)
    ]
    sums = [sum(pair[side] for pair in scores) / 2 for side in (0, 1)]
    return {
        "question_id": number,
        "category": CATEGORIES[number % len(CATEGORIES)],
        "turn": 1,
        "instruction": f"question {number}?",
        "output_1": f"baseline says {number}",
        "generator_1": "base",
        "output_2": f"model says {number}" + "!" * (number % 7),
        "generator_2": "ours",
        "annotator": "judge",
        "preference": 1.5 + 0.5 * ((sums[1] > sums[0]) - (sums[1] < sums[0])),
        "conflict": number % 3 == 2,
        "identical": False,
        "reviews": reviews,
        "scores": sums,
        **more,
    }


def made(folder: Path, rows: list[dict[str, Any]], *more: str) -> Path:
    path, out = folder / "verdicts.jsonl", folder / "page.html"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    assert main(["judge", "page", str(path), *more, "--out", str(out)]) == 0
    return out


class Opened:
    """A page opened without a network, closed with proof that it asked for nothing and had no
    error.
    """

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.set_offline(True)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.problems == []
        assert self.requests and all(url.startswith("file://") for url in self.requests)


def questions(page: Any) -> list[str]:
    texts: list[str] = page.locator("#rows .open").all_text_contents()
    return texts


def counted(page: Any, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#count")).to_have_text(text)


def test_figures_filters_and_orders(browser: Any, tmp_path: Path) -> None:
    missing = row(30, preference=None, conflict=None, reviews=[], scores=None, missing="no reply")
    rows = [row(number) for number in range(30)] + [missing]
    with Opened(browser, made(tmp_path, rows)) as page:
        assert page.inner_text("#title") == "ours against base"
        assert "judged by judge, 31 comparisons" in page.inner_text("#judge")
        # Ten won, lost and tied each: 50 %.
        assert page.inner_text("#rates .n").startswith("50.0 % [")
        assert page.inner_text("#counts") == (
            "model better 10 · baseline better 10 · tie 10 · no verdict 1"
        )
        facts = page.inner_text("#facts")
        assert "33.3 % of 30" in facts and "baseline 210, model 210, 100.0 % of" in facts
        names = page.locator("#categories b").all_text_contents()
        assert names == sorted(CATEGORIES)
        rates = page.locator("#categories .n").all_text_contents()
        # Each category has one of the three outcomes.
        assert [text.split(" %")[0] for text in rates] == ["50.0", "100.0", "0.0"]
        counted(page, "31 questions")
        page.select_option("#verdict", "tie")
        counted(page, "10 of 31")
        assert questions(page) == [f"question {number}?" for number in range(2, 30, 3)]
        assert page.locator("#rows .conflict").count() == 10
        page.select_option("#conflict", "false")
        counted(page, "0 of 31")
        assert page.locator("#empty").is_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("0")
        page.select_option("#conflict", "null")
        assert questions(page) == ["question 30?"]
        page.select_option("#conflict", "")
        page.select_option("#category", label="writing")
        counted(page, "10 of 31")
        page.select_option("#category", "")
        page.select_option("#sort", "longer")
        # The model's answers have up to six marks more; 6, 13, 20 and 27 have all of them.
        assert questions(page)[:4] == [f"question {number}?" for number in (6, 13, 20, 27)]
        page.select_option("#sort", "doubt")
        # The ties are made of a win and a loss, all others of two equal verdicts.
        assert questions(page)[:10] == [f"question {number}?" for number in range(2, 30, 3)]
        page.fill("#search", "REVIEW 17 with")
        counted(page, "1 of 31")
        assert questions(page) == ["question 17?"]


def test_keyboard_answers_and_both_reviews(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, made(tmp_path, [row(number) for number in range(9)])) as page:
        for key in ("j", "j", "j", "Enter"):
            page.keyboard.press(key)
        assert page.evaluate("document.activeElement.textContent") == "question 2?"
        detail = page.locator("tr.detail")
        parts = detail.locator(".part p").all_text_contents()
        assert parts == [
            "baseline says 2",
            "model says 2!!",
            "review 2 with the model first",
            "review 2 with the baseline first",
        ]
        heads = detail.locator(".part h3").all_text_contents()
        assert heads[2] == "model first, baseline 5 : model 7, model better"
        assert heads[3] == "baseline first, baseline 7 : model 5, baseline better"
        page.keyboard.press("j")  # who reads goes on to read the next
        assert detail.count() == 1 and "model says 3!!!" in detail.inner_text()
        page.keyboard.press("k")
        page.keyboard.press("Escape")
        assert detail.count() == 0
        assert page.evaluate("document.activeElement.textContent") == "question 2?"
        page.keyboard.press("/")
        page.keyboard.type("jk0")
        assert page.input_value("#search") == "jk0"
        counted(page, "0 of 9")
        page.keyboard.press("Escape")
        counted(page, "9 questions")


def test_texts_are_never_markup(browser: Any, tmp_path: Path) -> None:
    names = {"generator_1": EVIL, "generator_2": EVIL + "2", "annotator": EVIL, "category": EVIL}
    reviews = [review(EVIL, 1, 2, EVIL), {"order": None, "text": 7, "scores": "x"}, "no review"]
    rows = [
        row(0, instruction=EVIL, output_1=EVIL, output_2=EVIL, reviews=reviews, **names),
        row(1, instruction="half a pair \ud83d", missing=EVIL, **names),
    ]
    out = made(tmp_path, rows)
    assert out.read_text().count("</script>") == 2
    with Opened(browser, out) as page:
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        parts = page.locator("tr.detail .part p").all_text_contents()
        assert parts == [EVIL, EVIL, EVIL, ""] and EVIL in page.inner_text("#title")
        for node in ("#category", "#sort"):
            for index in range(page.locator(f"{node} option").count()):
                page.select_option(node, index=index)
        assert page.evaluate("window.bad") is None
        assert page.locator("img, #rows b").count() == 0


def test_several_comparisons_in_one_page(browser: Any, tmp_path: Path) -> None:
    rows = [row(number) for number in range(3)]
    rows += [row(number, generator_2="theirs", preference=2) for number in range(2)]
    with Opened(browser, made(tmp_path, rows)) as page:
        assert page.locator("#rates b").all_text_contents() == ["ours : base", "theirs : base"]
        counted(page, "3 questions")
        page.select_option("#comparison", index=1)
        counted(page, "2 questions")
        assert page.inner_text("#title") == "theirs against base"
        assert page.inner_text("#counts") == "model better 2"


@pytest.mark.parametrize("width", [1280, 390])
def test_805_rows_open_at_once(browser: Any, tmp_path: Path, width: int) -> None:
    """Answers and reviews of AlpacaEval's lengths: two megabytes of texts."""
    long = {"output_2": "word " * 280, "output_1": "word " * 100}
    rows = [row(number, **long) for number in range(805)]
    for each in rows:
        for said in each["reviews"]:
            said["text"] += " because" * 60
    out = made(tmp_path, rows)
    assert out.stat().st_size > 2e6
    seconds = []
    for _ in range(3):  # the best of three: what else runs beside the tests is not the page's
        begun = time.monotonic()
        with Opened(browser, out, viewport={"width": width, "height": 844}) as page:
            assert page.locator("#rows .open").count() == 805
            seconds.append(time.monotonic() - begun)
            page.keyboard.press("j")
            page.keyboard.press("Enter")
            assert page.evaluate("document.documentElement.scrollWidth") == width
    assert min(seconds) < 2, seconds


def test_more_than_a_thousand_rows_come_in_parts(browser: Any, tmp_path: Path) -> None:
    with Opened(browser, made(tmp_path, [row(number) for number in range(1100)])) as page:
        assert len(questions(page)) == 1000
        page.get_by_role("button", name="Show 100 more").click()
        assert len(questions(page)) == 1100 and not page.locator("#more").is_visible()


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lists = tmp_path / "lists.jsonl"
    lists.write_text(json.dumps({"generator_1": "a", "generator_2": "b", "preference": [1, 2]}))
    out = tmp_path / "page.html"
    assert main(["judge", "page", str(lists), "--out", str(out)]) == 2
    assert "lists of preferences have no answers to show" in capsys.readouterr().err
    assert main(["judge", "page", str(lists), "--out", str(lists)]) == 2
    assert "is among the files to read" in capsys.readouterr().err
    assert not out.exists()
    rows = [row(0), row(1, preference=5)]
    page = made(tmp_path, rows).read_text()
    assert "1 row was set aside" in capsys.readouterr().out
    assert "set aside: 1 preference out of range" in page


def test_results_of_openchats_evaluation(browser: Any, tmp_path: Path) -> None:
    """Both orders of a row with the model's score first; (0, 0) could not be read."""

    def result(number: int, a: list[int], b: list[int]) -> dict[str, Any]:
        score = {"score": [0, 0], "raw_a": [a, f"review a {number}"], "raw_b": [b, "review b"]}
        more = {"answer_model": "ours", "category": "math", "answer": f"answer {number}"}
        return {"question_id": number, "text": f"question {number}?", "score": score, **more}

    rows = [result(1, [8, 6], [5, 7]), result(2, [9, 3], [0, 0]), result(3, [0, 0], [0, 0])]
    path, out = tmp_path / "ours_1_VS_gpt.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert main(["judge", "page", str(path), "--out", str(out)]) == 0
    with Opened(browser, out) as page:
        assert page.inner_text("#title") == "ours against gpt"
        # 6.5 to 6.5 is a tie, 9 to 3 a win, and the third has no score.
        assert page.inner_text("#counts") == "model better 1 · tie 1 · no verdict 1"
        facts = page.inner_text("#facts")
        assert "baseline 9.5, model 15.5, 163.2 % of the baseline's" in facts
        assert "100.0 % of 1" in facts
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        told = page.inner_text("tr.detail")
        assert "review a 1" in told and "The baseline's answer is not in the file." in told
        assert "baseline first, baseline 7 : model 5, baseline better" in told


@pytest.mark.skipif(not REAL.is_dir(), reason="AlpacaEval's files are not beside the checkout")
def test_annotations_of_alpaca_eval(browser: Any, tmp_path: Path) -> None:
    file = REAL / "ultralm-13b-v2.0" / "alpaca_eval_gpt4" / "annotations.json.gz"
    out = tmp_path / "page.html"
    assert main(["judge", "page", str(file), "--out", str(out)]) == 0
    with Opened(browser, out) as page:
        assert page.inner_text("#rates .n").startswith("86.3 % [")
        counted(page, "805 questions")
        names = page.locator("#categories b").all_text_contents()
        assert names == ["helpful_base", "koala", "oasst", "selfinstruct", "vicuna"]
        page.select_option("#verdict", "none")
        counted(page, "3 of 805")
