"""The report page: complete, self-contained, honest about what is missing, and safe to open."""

import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openba.report.charts import funnel_chart, heldout_chart, loss_chart
from openba.report.page import render
from openba.report.schema import Report, Training
from openba.report.skills import skills

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")

SECTIONS = [
    "skills", "examples", "made", "scores", "training", "experts", "transfer", "cost", "generations",
    "registry", "data", "tokenizer", "steps",
]  # fmt: skip
ATTACK = "<script>alert('owned')</script><img src=http://evil.example/x onerror=alert(1)>"


def curve(steps: int, start: float, end: float) -> list[dict]:
    return [
        {
            "step": step,
            "loss": end + (start - end) * math.exp(-4 * step / steps) + 0.12 * math.sin(7.3 * step) ** 3,
            "tokens_per_second": 5200 + step % 40,
            "lr": 1e-3,
        }
        for step in range(1, steps + 1)
    ]


def heldout(steps: int, start: float, end: float, modes: bool) -> list[dict]:
    points = []
    for step in range(0, steps + 1, steps // 6):
        loss = end + (start - end) * math.exp(-4 * step / steps)
        spread = {"R": 0.96 * loss, "S": 1.03 * loss, "X": 1.01 * loss} if modes else {}
        points.append({"step": step, "loss": loss, **spread})
    return points


def cost(flops: float, hours: float) -> dict:
    return {
        "flops": flops,
        "flops_useful": 0.6 * flops,
        "flops_hardware": 0.7 * flops,
        "device_hours": hours,
        "energy_kwh_paper": hours * 10 * 1.1 / 1000,
        "tco2eq_paper": hours * 10 * 1.1 / 1e6 * 0.385,
        "energy_joules_measured": None,
        "energy_domains": [],
        "energy_kwh_measured": None,
        "tco2eq_measured": None,
        "energy_kwh_estimated": None,
        "tco2eq_estimated": None,
        "tflops_per_device": flops / hours / 3600 / 1e12,
        "utilisation": 0.41,
        "utilisation_useful": 0.25,
        "utilisation_hardware": 0.29,
    }


def training() -> list[Training]:
    shape = {"parameters": 3_412_992, "resumed": 0}
    stages = [
        ("stage1", "Stage I: UL2 pre-training", 300, (8.62, 5.31), True, 1.9e13, 0.061),
        ("stage2", "Stage II: length adaptation", 120, (5.74, 5.02), False, 8.8e12, 0.031),
        ("stage3", "Stage III: bilingual Flan", 180, (5.9, 3.1), False, 6.1e12, 0.027),
    ]
    experts = [
        ("chat", "OpenBA-Chat", (4.4, 3.7)),
        ("code", "OpenBA-Code", (4.9, 3.9)),
        ("instructgen", "OpenBA-InstructGen", (4.1, 3.3)),
        ("ner", "OpenBA-NER", (3.6, 1.4)),
        ("tool", "OpenBA-Tool", (4.2, 2.2)),
    ]
    return [
        {
            "step": step,
            "title": title,
            "steps": steps,
            "tokens": steps * 7600,
            "curve": curve(steps, *loss),
            "heldout": heldout(steps, *loss, modes),
            "cost": cost(flops, hours),
            **shape,
        }
        for step, title, steps, loss, modes, flops, hours in stages
    ] + [
        {
            "step": step,
            "title": title,
            "steps": 60,
            "tokens": 456_000,
            "curve": curve(60, *loss),
            "heldout": heldout(60, *loss, modes=False),
            "baseline_heldout": loss[0],
            "cost": cost(1.4e12, 0.006),
            **shape,
            "resumed": int(step == "code"),
        }
        for step, title, loss in experts
    ]


def funnel() -> list[dict]:
    rows = []
    losses = {
        "privacy": (0, 0.004),
        "html": (0, 0.013),
        "unusual_characters": (0, 0.002),
        "document_dedup": (0.021, 0.034),
        "character_dedup": (0, 0.009),
        "paragraph_dedup": (0.004, 0.052),
        "min_words": (0.061, 0.024),
        "languages": (0.038, 0.029),
    }
    for source, documents, size in (("people_daily", 19_484, 5_310_224), ("reviews", 35_123, 6_884_120)):
        for stage, (lost, shrunk) in losses.items():
            left, kept = round(documents * (1 - lost)), round(size * (1 - shrunk))
            rows.append(
                {
                    "source": source,
                    "stage": stage,
                    "documents_in": documents,
                    "documents_out": left,
                    "bytes_in": size,
                    "bytes_out": kept,
                    "tokens_in": size // 4,
                    "tokens_out": kept // 4,
                }
            )
            documents, size = left, kept
    return rows


def baselines(
    metric: str, frequent: tuple[float, float], other: tuple[str, float, float], chance: float | None = None
) -> dict:
    return {
        "trained_on": 1912,
        "chance": {} if chance is None else {metric: chance},
        "methods": {
            name: {"scores": {metric: score}, "stderr": {metric: error}}
            for name, score, error in (("most frequent answer", *frequent), other)
        },
    }


def evaluations() -> list[dict]:
    zh = {
        "input": "请判断这条评论的情感，回答“正面”或“负面”。评论：质量很好，物流也快，下次还会再来。",
        "target": "正面",
        "output": "正面",
    }
    en = {
        "input": "Which topic is this article about: business, entertainment, politics, sport or tech? "
        "Ad sales boost Time Warner profit. Quarterly profits at the media giant jumped 76 % ...",
        "target": "business",
        "output": ATTACK,
    }
    return [
        {
            "model": "stage3",
            "benchmark": "sentiment_zh",
            "language": "zh",
            "method": "choice",
            "n": 100,
            "scores": {"accuracy": 61.0},
            "stderr": {"accuracy": 4.9},
            "paper": None,
            "baselines": baselines("accuracy", (50.0, 5.0), ("TF-IDF, logistic regression", 74.0, 4.4), 50.0),
            "samples": [zh],
        },
        {
            "model": "stage3",
            "benchmark": "translation_en_zh",
            "language": "zh",
            "method": "generate",
            "n": 100,
            "scores": {"bleu": 1.24, "chrf": 6.85},
            "stderr": {"bleu": 0.31, "chrf": 0.6},
            "baselines": baselines("bleu", (0.0, 0.0), ("copy of the question", 0.9, 0.2)),
            "signature": "nrefs:1|case:mixed|tok:zh|smooth:exp|version:2.6.0",
            "paper": {
                "value": 37.4,
                "where": "Table 9, Flores en-zh, 50 sentences; here, strings of a web framework",
            },
            "samples": [zh],
        },
        {
            "model": "OpenBA-Chat",
            "benchmark": "topics_en",
            "language": "en",
            "method": "generate",
            "n": 100,
            "scores": {"exact_match": 22.0},
            "baselines": baselines(
                "exact_match", (27.0, 4.5), ("TF-IDF, logistic regression", 96.0, 2.0), 20.0
            ),
            "samples": [en, {**en, "output": ""}],
        },
        {
            "model": "OpenBA-NER",
            "benchmark": "ner",
            "language": "zh",
            "method": "generate",
            "n": 100,
            "scores": {"entity_f1": 61.3, "entity_f1_unreadable": 0.0},
            "stderr": {"entity_f1": 2.9},
            "baselines": baselines("entity_f1", (0.0, 0.0), ("maximum-entropy tagger", 70.1, 2.4)),
            "samples": [
                {
                    "input": "Sentence: 江泽民主席在北京会见了克林顿总统。",
                    "target": "[江泽民](person), [北京](location), [克林顿](person)",
                    "output": "[江泽民](person), [北京](organization)",
                }
            ],
        },
        {
            "model": "OpenBA-Chat",
            "benchmark": "identity",
            "language": "en",
            "method": "generate",
            "n": 28,
            "scores": {"exact_match": 100.0},
            "stderr": {"exact_match": 0.0},
            "samples": [
                {
                    "input": "Human: 你好 Assistant: 你好！ Human: What is your name? Assistant:",
                    "target": "OpenBA",
                    "output": "I am OpenBA, a language model.",
                }
            ],
        },
        {
            "model": "OpenBA-Chat",
            "benchmark": "chat-perplexity",
            "language": "zh",
            "method": "likelihood",
            "n": 71,
            "scores": {"perplexity": 290.4},
            "stderr": {"perplexity": 31.7},
        },
        {
            "model": "OpenBA-Code",
            "benchmark": "code",
            "language": "en",
            "method": "generate",
            "n": 100,
            "scores": {"chrf": 24.0, "python_syntax": 48.0},
            "stderr": {"chrf": 0.9, "python_syntax": 5.0},
            "baselines": baselines("chrf", (12.0, 0.4), ("nearest training record", 25.1, 1.3)),
            "samples": [
                {
                    "input": "Write the Python function `first(items)`: The first of the items.",
                    "target": "def first(items):\n    return next(iter(items))",
                    "output": "def first(items):\n    return items[0]",
                }
            ],
        },
    ]


def sample() -> Report:
    """A whole run of a toy pipeline, of the sizes that such a run has."""
    names = [
        ("source-people_daily", "People's Daily, January 1998"),
        ("clean", "Cleaning, all sources together"),
        ("tokenizer", "Unigram tokenizer, 8,000 pieces"),
        ("mixture", "47.5 % zh, 47.5 % en, 5 % code"),
        ("stage1", "UL2 pre-training"),
        ("stage2", "Length adaptation"),
        ("stage3", "Bilingual Flan"),
        ("expert-chat", "OpenBA-Chat"),
        ("evaluate-stage3", "Benchmarks of Stage III"),
    ]
    return {
        "pipeline": "tiny",
        "banner": "Toy numbers: a model of 3M parameters trained for minutes. "
        "They show that the pipeline works and are not comparable with the paper.",
        "git": {"commit": "4f2a9c1d7be0835512aa90c3", "dirty": True},
        "hardware": "2 x AMD EPYC core, 16 GB, no accelerator",
        "started": 1_790_000_000.0,
        "seconds": 1312.4,
        "peak_memory_bytes": 3_220_000_000,
        "links": {
            "MLflow": "http://127.0.0.1:5000/#/experiments/1",
            "Store": "runs/tiny/store",
            "Run it again": "openba run configs/pipeline/tiny.yaml",
        },
        "steps": [
            {
                "name": name,
                "title": title,
                "fingerprint": f"{(index + 3) * 7_654_321_987:012x}"[:12],
                "state": "cached" if index < 3 else "built",
                "seconds": 3.7 * 2.1**index,
                "uri": f"runs/tiny/store/{name}/{(index + 3) * 7_654_321_987:012x}",
            }
            for index, (name, title) in enumerate(names)
        ],
        "funnel": funnel(),
        "cleaning_examples": {
            "character_dedup": [{"before": "好好好好好好好好！！！！！物流很快", "after": "好！物流很快"}],
            "privacy": [
                {"rule": "email", "before": "联系 [email] 或 [phone] 咨询", "after": "联系  或  咨询"}
            ],
        },
        "quarantined": [
            {"source": "reviews", "files": 1, "rows": 3, "first": ["data/r.jsonl: row 7: no valid JSON"]}
        ],
        "mixture": {
            "shares_wanted": {"zh": 0.475, "en": 0.475, "code": 0.05},
            "tokens": {
                "stage1": {"zh": 950_211, "en": 949_870, "code": 100_020},
                "stage2": {"zh": 237_603, "en": 237_410, "code": 25_102},
                "heldout": {"zh": 47_420, "en": 47_611, "code": 4_950},
            },
            "documents": {"stage1": 11_136, "stage2": 2_792, "heldout": 556},
        },
        "tokenizer": {
            "vocab": 8_192,
            "characters_per_token": {"zh": 1.38, "en": 3.71, "code": 2.42},
            "byte_or_unknown_share": {"zh": 0.0121, "en": 0.0003, "code": 0.0044},
        },
        "training": training(),
        "evaluations": evaluations(),
        "transfer": [
            {
                "expert": "ner",
                "start": "stage3",
                "seeds": 3,
                "loss": 0.412,
                "loss_from_nothing": 0.531,
                "gain": 0.119,
                "error": 0.0124,
            }
        ],
        "registry": [
            {
                "name": "openba-base",
                "version": 3,
                "alias": ["candidate", "champion"],
                "uri": "runs/tiny/store/stage3/0af31c22d9e1",
                "decision": "promoted",
                "reason": "heldout/loss 3.102 is not worse than 3.118",
            },
            {
                "name": "openba-chat",
                "version": 1,
                "alias": ["candidate"],
                "uri": "runs/tiny/store/expert-chat/77b0aa31c9d2",
                "decision": "held",
                "reason": "heldout/loss 3.71 is worse than the champion's 3.64 by more than 0.01",
            },
        ],
        "not_run": [{"what": "C-Eval", "why": "its licence does not let the questions be shipped"}],
    }


class Page(HTMLParser):
    """Tags, attributes and ids of a page, and which tags were left open."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return render(sample())


def test_every_section_is_there_and_the_page_is_well_formed(html: str) -> None:
    page = Page(html)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert [name for name in ids if name in (*SECTIONS, "not-run")] == [*SECTIONS, "not-run"]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for tag, a in page.tags if tag == "a" and (a.get("href") or "").startswith("#")}
    assert targets == {f"#{name}" for name in (*SECTIONS, "not-run")}


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    assert "@import" not in html
    assert all(match.startswith("#") for match in re.findall(r"url\(['\"]?([^)]*)\)", html))
    for tag, attributes in Page(html).tags:
        assert tag not in ("script", "link", "iframe", "img", "object", "embed", "image", "base")
        assert not {"src", "srcset", "xlink:href", "onerror", "onload"} & attributes.keys()
        if tag != "a":
            assert (attributes.get("href") or "#").startswith("#")
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses == {"http://127.0.0.1:5000/#/experiments/1", "http://evil.example/x"}


def test_generations_are_text_and_never_markup(html: str) -> None:
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;owned&#39;)&lt;/script&gt;" in html
    assert ATTACK in "".join(Page(html).text)
    assert "质量很好，物流也快" in html


def test_every_text_of_the_data_is_escaped() -> None:
    report = sample()
    report["pipeline"] = report["banner"] = report["hardware"] = ATTACK
    report["links"] = {ATTACK: f"javascript:{ATTACK}"}
    report["steps"][0] |= {"name": ATTACK, "title": ATTACK, "uri": ATTACK, "fingerprint": ATTACK}
    report["funnel"] = [{**row, "source": ATTACK, "stage": ATTACK} for row in report["funnel"][:2]]
    report["cleaning_examples"] = {ATTACK: [{"before": ATTACK, "after": "<b>"}]}
    report["mixture"]["tokens"] = {ATTACK: {ATTACK: 5}}
    report["training"] = [{**run, "title": ATTACK, "step": ATTACK} for run in report["training"]]
    report["evaluations"][0] |= {"model": ATTACK, "scores": {ATTACK: 1.0}, "signature": ATTACK}
    report["registry"][0] |= {"alias": [ATTACK], "reason": ATTACK}
    report["not_run"] = [{"what": ATTACK, "why": ATTACK}]
    tags = Page(render(report)).tags
    assert not [tag for tag, _ in tags if tag in ("script", "img", "b")]
    assert not [a for tag, a in tags if tag == "a" and (a["href"] or "").startswith("javascript:")]


def test_facts_stand_in_the_page(html: str) -> None:
    text = re.sub(r"\s+", " ", "".join(Page(html).text))
    for fact in (
        "All 9 steps complete: 3 cached, 6 built.",
        "Toy numbers",
        "uncommitted changes",
        "2026-09-21 14:13",
        "21:52",
        "3.22 GB",
        "1.38",
        "1.2 %",
        "11,136",
        "37.4",
        "Flores en-zh, 50 sentences",
        "no readable counter",
        "not worse than 3.118",
        "+0.119 ± 0.012",
        "its licence does not let",
        "data/r.jsonl: row 7: no valid JSON",
        "[email]",
    ):
        assert fact in text
    # Stage I falls from 8.62 to 5.371 on held-out data.
    assert "8.620" in text
    assert "\N{MINUS SIGN}37.7 %" in text


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_missing_reads_not_run(section: str) -> None:
    html = render({"pipeline": "tiny"})
    body = re.search(rf'<section id="{section}">(.*?)</section>', html, re.S)
    assert body is not None
    assert "not run" in body.group(1)
    assert not re.search(r">\s*0", body.group(1))


def test_missing_figures_inside_a_section_read_not_run_and_never_zero() -> None:
    run: Training = {"step": "stage1", "title": "Stage I"}
    evaluation = {
        "model": "stage3",
        "benchmark": "ner",
        "language": "zh",
        "method": "generate",
        "n": 9,
        "scores": {},
    }
    html = render({"training": [run], "evaluations": [evaluation], "tokenizer": {"vocab": 100}})
    sections = dict(re.findall(r'<section id="([^"]*)">(.*?)</section>', html, re.S))
    for name in ("training", "cost", "scores", "tokenizer"):
        assert "not run" in sections[name]
        cells = re.findall(r"<(?:td|dd)[^>]*>(.*?)</(?:td|dd)>", sections[name], re.S)
        assert not [cell for cell in cells if re.match(r"\s*0", cell)]


def test_a_part_is_not_given_as_the_total() -> None:
    first, second = training()[:2]
    first["cost"] |= {"energy_joules_measured": 12_300.0, "energy_domains": ["cpu"]}
    html = render({"training": [first, second]})
    row, total = re.findall(r"<tr>(.*?)</tr>", html[html.index('<section id="cost">') :], re.S)[1:4:2]
    assert "12.3 kJ" in row
    assert "(cpu)" in row
    assert "not all measured" in total
    assert "2.78&times;10<sup>13</sup>" in total
    assert "has no readable counter" not in html


def test_an_estimate_is_called_one() -> None:
    run = training()[0]
    assert "codecarbon" not in render({"training": [run]})
    run["cost"] |= {"energy_kwh_estimated": 0.002, "tco2eq_estimated": 1.1e-6}
    html = render({"training": [run]})
    assert "codecarbon's estimate, from nominal power where there is no counter: 2 Wh, 1.1 g" in html
    assert "has no readable counter" in html


def test_a_training_that_ignores_its_source_is_named() -> None:
    run = training()[0]
    assert "does not use its source" not in render({"training": [run]})
    line = "the source is ignored on R: loss 5.000, with another sample's source 5.010"
    html = render({"training": [{**run, "source_alarms": [line]}]})
    assert f"{run['title']} uses its source, but not in every part:" in html
    on_all_samples = line.replace("on R", "on all samples")
    html_of_all = render({"training": [{**run, "source_alarms": [on_all_samples, line]}]})
    assert f"{run['title']} does not use its source:" in html_of_all
    assert "the source is ignored on R: loss 5.000" in html


def test_loss_that_is_not_a_number_reads_not_run() -> None:
    run = {**training()[0], "heldout": [{"step": 0, "loss": 9.0}, {"step": 5, "loss": math.nan}]}
    html = render({"training": [run]})
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.S).lower()


@pytest.mark.parametrize(
    ("states", "tone", "words"),
    [
        (["built", "cached"], "good", "All 2 steps complete"),
        (["built", "failed", "not run"], "bad", "Failed at step-1"),
        (["built", "not run"], "unknown", "Incomplete: 1 built, 1 not run."),
        ([], "unknown", "No step was run."),
    ],
)
def test_verdict(states: list[str], tone: str, words: str) -> None:
    steps = [{"name": f"step-{i}", "fingerprint": "0", "state": state} for i, state in enumerate(states)]
    html = render({"steps": steps})
    assert f'class="verdict {tone}"' in html
    assert words in html


def test_the_same_facts_give_the_same_page(html: str) -> None:
    assert render(sample()) == html


def test_charts_are_small_whatever_the_run() -> None:
    charts = re.findall(r"<svg.*?</svg>", render(sample()), re.S)
    assert len(charts) == 3 + 2 + 2 * 8, "a funnel of each of the two sources among them"
    assert max(map(len, charts)) < 60_000
    assert len(loss_chart("long", curve(20_000, 9.0, 2.0))) < 60_000
    assert len(heldout_chart("long", heldout(20_000, 9.0, 2.0, modes=True))) < 60_000


def test_the_funnel_has_tokens_where_they_are_known() -> None:
    html = render(sample())
    assert "1.33M" in re.findall(r"people_daily</td>(.*?)</tr>", html, re.S)[0]
    rows = [{k: v for k, v in row.items() if not k.startswith("tokens")} for row in funnel()]
    assert ">tokens<" in funnel_chart(funnel())
    assert ">tokens<" not in funnel_chart(rows)
    assert "not run" in re.findall(r"people_daily</td>(.*?)</tr>", render({"funnel": rows}), re.S)[0]


def test_charts_take_names_as_they_are() -> None:
    row = {"documents_in": 10, "documents_out": 5, "bytes_in": 100, "bytes_out": 40}
    svg = funnel_chart([{"source": "a", "stage": "清洗 $x_1$ <b>", **row}])
    assert "清洗 $x 1$ &lt;b&gt;" in svg
    assert "50.0" in svg
    assert "40.0" in svg


def test_funnel_counts_each_source_from_its_own_start() -> None:
    def row(source: str, stage: str, into: int, out: int) -> dict:
        sizes = {"documents_in": into, "documents_out": out, "bytes_in": into, "bytes_out": out}
        return {"source": source, "stage": stage, **sizes}

    # zh: 100 -> 80 -> 40. en takes part in the second stage only: 100 -> 100.
    rows = [row("zh", "privacy", 100, 80), row("zh", "html", 80, 40), row("en", "html", 100, 100)]
    labels = re.findall(r">(\d+\.\d)<", funnel_chart(rows))
    assert labels == ["80.0", "70.0", "80.0", "70.0"]


def test_matplotlib_is_imported_only_to_draw() -> None:
    code = "import sys; from openba.report.page import render; render({}); print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_skills_come_best_first_with_what_they_are_to_be_seen_beside() -> None:
    rows = skills(evaluations())
    assert [row.evaluation["benchmark"] for row in rows[:2]] == ["ner", "sentiment_zh"]
    by_name = {row.evaluation["benchmark"]: row for row in rows}
    sentiment = by_name["sentiment_zh"]
    assert (sentiment.floor, sentiment.classical) == (
        ("most frequent answer", 50.0, 5.0),
        ("TF-IDF, logistic regression", 74.0, 4.4),
    )
    assert sentiment.gain == pytest.approx(11 / 50)
    assert sentiment.verdict == "lost"  # 13 points, and the difference's standard error is 6.6
    assert by_name["code"].verdict == "tied"  # 1.1 points, 1.6
    assert (
        by_name["topics_en"].gain < 0
    )  # worse than the most frequent answer, and last of those with a floor
    assert by_name["chat-perplexity"].gain is None


def test_the_first_screen_names_scores_baselines_and_commands(html: str) -> None:
    first = html.partition('<section id="made">')[0]
    text = re.sub(r"\s+", " ", "".join(Page(first + "</main></body></html>").text))
    assert "8 models of 3.41M parameters" in text
    assert "openba serve models:/openba-base@champion" in text
    assert re.search(
        r"openba eval models:/openba-base@champion [a-z][\w-]+ [a-z][\w-]+ --out results/new", text
    )
    assert "61.3 ± 2.9" in text
    assert "70.1 ± 2.4 maximum-entropy tagger" in text
    assert "290 ± 31.7" in text  # not 2.9e+02
    assert "± 0.0" not in text
    assert first.count('class="entity good"') == 2  # one person, on either side
    assert first.count('class="entity bad"') == 3
    assert '<p class="assistant">' in first


def test_what_an_earlier_run_built_is_folded() -> None:
    report = sample()
    for step in report["steps"]:
        step["state"] = "cached"
        step["title"] = "openba.data.sources"
    opened, folded = (render(each) for each in (sample(), report))
    for section in ("steps", "data"):
        where = rf'<section id="{section}">.*?<details( open)?>'
        assert re.search(where, opened, re.S)[1] == " open"  # type: ignore[index]
        assert re.search(where, folded, re.S)[1] is None  # type: ignore[index]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [390, 768, 1024, 1280, 1600, 1920])
def test_no_table_is_cut_off(html: str, width: int, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(file.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        cut = page.evaluate(
            "[...document.querySelectorAll('.scroll, html')]"
            ".filter(each => each.scrollWidth > each.clientWidth + 1).map(each => each.textContent)"
        )
        browser.close()
    assert cut == []


def test_a_link_ends_before_the_remark_behind_it() -> None:
    html = render(
        {"links": {"MLflow experiment": "http://127.0.0.1:5000/#/experiments/1  (start it with: openba ui)"}}
    )
    assert '<a href="http://127.0.0.1:5000/#/experiments/1">http://127.0.0.1:5000/#/experiments/1</a>' in html
    assert "</a> (start it with: openba ui)" in html
