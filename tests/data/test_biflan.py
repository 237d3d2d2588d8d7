"""The shipped tasks of BiFlan, each on its real data set where that is at hand, else on written records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from openba.artifacts import Build
from openba.config import CONFIGS, Config, ConfigError, load
from openba.data import instruct, labelled
from openba.data.instruct import Pairs, counts
from openba.data.labelled import render
from openba.data.pairs import Rendered
from openba.data.sources import read
from openba.errors import UserError
from openba.graph import Pipeline, find_pipeline
from openba.recipes.data import InstructRecipe, TaskRecipe, TaskStep

FLAN = sorted(path.stem for path in (CONFIGS / "task" / "flan").glob("*.yaml"))
# Task -> its data set below shared/data. Records: of the file, after nested lists are opened.
REAL = {
    "bustm": ("flan_fewclue_zh/bustm.jsonl", 128),
    "c3": ("flan_c3_zh/train.jsonl", 1054),
    "chid": ("flan_fewclue_zh/chid.jsonl", 149),
    "cluewsc": ("flan_fewclue_zh/cluewsc.jsonl", 119),
    "cmrc": ("raw_zh_wiki_qa/docs.jsonl", None),
    "csl-discipline": ("raw_zh_science_abstracts/docs.jsonl", 1000),
    "csl-keyword-check": ("flan_fewclue_zh/csl.jsonl", 85),
    "csl-title": ("raw_zh_science_abstracts/docs.jsonl", 1000),
    "csldcp": ("flan_fewclue_zh/csldcp.jsonl", 113),
    "drcd-title": ("raw_zh_hant_wiki/docs.jsonl", None),
    "eprstmt": ("flan_fewclue_zh/eprstmt.jsonl", 117),
    "gaokao": ("flan_gaokao_zh/questions.jsonl", 240),
    "iflytek": ("flan_fewclue_zh/iflytek.jsonl", 73),
    "kdconv": ("chat_kdconv_zh/dialogues.jsonl", None),
    "ocnli": ("flan_fewclue_zh/ocnli.jsonl", 128),
    "p3": ("flan_p3_en/train.jsonl", 1578),
    "pclue": ("flan_pclue_zh/train.jsonl", 1115),
    "thucnews-topic": ("raw_zh_news_titles/titles.jsonl", 3000),
    "tnews": ("flan_fewclue_zh/tnews.jsonl", 353),
    "wmt-en-zh": ("flan_wmt_zh_en/train.jsonl", 2000),
}
PAIR = [{"inputs": "Is ice cold?", "targets": "yes"}]
# Task -> a record of the form that its file states, and what its targets must be.
FORMS: dict[str, tuple[list[dict[str, Any]], set[str]]] = {
    "flan2021": (PAIR, {"yes"}),
    "t0": (PAIR, {"yes"}),
    "super-natural-instructions": (PAIR, {"yes"}),
    "chain-of-thought": (PAIR, {"yes"}),
    "dialog": (PAIR, {"yes"}),
    "wikititles": ([{"en": "Ice", "zh": "冰"}, {"en": "Fire", "zh": "火"}], {"冰", "Ice", "火", "Fire"}),
    "translation2019zh": ([{"english": "Ice", "chinese": "冰"}], {"冰", "Ice"}),
    "multitarget-ted": ([{"en": "Ice", "zh": "冰"}], {"冰", "Ice"}),
    "douban": ([{"turns": ["在吗", "在的", "走吧"]}], {"在的"}),
    "chinese-persona-chat": ([{"persona": ["我爱猫"], "turns": ["你好", "喵"]}], {"喵"}),
    "cmnli": (
        [
            {"sentence1": "猫睡了", "sentence2": "猫醒着", "label": "contradiction"},
            {"sentence1": "a", "sentence2": "b", "label": "-"},
        ],
        {"矛盾"},
    ),
    "cinlid": ([{"phrase1": "画蛇添足", "phrase2": "多此一举", "label": "entailment"}], {"相近"}),
    "afqmc": ([{"sentence1": "怎么还款", "sentence2": "如何还款", "score": 1}], {"相同"}),
    "csl-keywords": (
        [{"abstract": "研究", "title": "论冰", "keywords": "冰_水", "discipline": "物理"}],
        {"冰、水", "冰\n水"},
    ),
    "wikilingua-zh": ([{"document": "先烧水，再下面。", "summary": "煮面"}], {"煮面"}),
    "duie": (
        [
            {
                "text": "甲生于乙",
                "spo_list": [{"subject": "甲", "predicate": "出生地", "object": {"@value": "乙"}}],
            }
        ],
        {"（甲，出生地，乙）"},
    ),
    "advertisegen": ([{"content": "类型#裙*颜色#蓝色", "summary": "蓝裙子"}], {"蓝裙子"}),
    "nlpcc2014-news": ([{"text": "球队取胜", "category": "体育"}], {"体育"}),
    "chinese-biomedical-qa": (
        [{"questionText": "哪种？", "options": ["甲", "乙"], "answer": "B"}],
        {"B", "乙"},
    ),
    "nlpcc2014-sentiment": ([{"text": "很好", "label": 1}], {"正面"}),
    "msra-ner": ([{"text": "王五", "entities": [["王五", "人名"]]}], {"[王五](人名)", "王五"}),
    "drcd": (
        [
            {
                "title": "冰",
                "paragraphs": [
                    {
                        "context": "冰是水",
                        "id": "p",
                        "qas": [{"id": "q", "question": "是？", "answers": [{"text": "水"}]}],
                    }
                ],
            }
        ],
        {"水"},
    ),
    "math23k": (
        [{"original_text": "1加1", "equation": "x=1+1", "ans": "2"}],
        {"2", "x=1+1\n答：2", "算式：x=1+1，答案：2"},
    ),
}


def recipe_of(name: str, *overrides: str) -> TaskRecipe:
    return load(CONFIGS / "task" / "flan" / f"{name}.yaml", TaskRecipe, list(overrides))


def rendered(recipe: TaskRecipe, name: str) -> Rendered:
    return render(recipe, pa.Table.from_batches(read(name, recipe.source)), name)


def on(path: Path, name: str, *overrides: str) -> TaskRecipe:
    """The task as shipped, but for where its records lie."""
    source = f"source={{adapter: jsonl, path: {path}, text_field: null, language: zh, licence: test}}"
    return recipe_of(name, source, *overrides)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def real(shared):
    """Each task with data at hand, rendered once."""
    known: dict[str, Rendered] = {}

    def get(name: str) -> Rendered:
        if name not in known:
            known[name] = rendered(recipe_of(name, f"source.path={shared / 'data' / REAL[name][0]}"), name)
        return known[name]

    return get


def all_pairs(result: Rendered) -> list[dict[str, Any]]:
    return [*result.train.to_pylist(), *result.heldout.to_pylist()]


# The declarations


def test_every_task_is_tried_here() -> None:
    assert sorted(REAL.keys() | FORMS.keys()) == FLAN
    assert not REAL.keys() & FORMS.keys()


@pytest.mark.parametrize("name", FLAN)
def test_declaration(name: str) -> None:
    recipe = recipe_of(name)
    text = (CONFIGS / "task" / "flan" / f"{name}.yaml").read_text(encoding="utf-8")
    assert recipe.part
    assert recipe.source.licence
    assert "github.com" in text or "arXiv" in text or "Hugging Face" in text or "Figure 1" in text
    comes_rendered = {"{input}", "{inputs}"} & {turn.input for turn in recipe.templates}
    assert len(recipe.templates) >= 3 or comes_rendered
    assert len({turn.input for turn in recipe.templates}) == len(recipe.templates)
    if recipe.source.language == "zh":  # instructions are in the task's language
        for turn in recipe.templates:
            bare = turn.input in ("{input}", "{history}") or turn.input == "{context}\n\n{question}"
            assert bare or any("\u4e00" <= character <= "\u9fff" for character in turn.input), turn.input


@pytest.mark.parametrize("name", sorted(FORMS))
def test_records_of_the_public_form(name: str, tmp_path: Path) -> None:
    rows, targets = FORMS[name]
    many = [row for row in rows for _ in range(40)]
    path = written(tmp_path / "data.jsonl", many)
    result = rendered(on(path, name, "heldout=0", "version=2"), name)
    found = {pair["target"] for pair in all_pairs(result)}
    assert found
    assert found <= targets
    assert result.train.num_rows + sum(result.discarded.values()) >= len(many)


@pytest.mark.parametrize("name", sorted(REAL))
def test_real_records(real: Any, name: str) -> None:
    result, recipe = real(name), recipe_of(name)
    pairs = all_pairs(result)
    assert all(pair["input"].strip() and pair["target"].strip() for pair in pairs)
    assert not any(
        "{" in turn.target for turn in recipe.templates if turn.target in {p["target"] for p in pairs}
    )
    if REAL[name][1] is not None:
        assert len(pairs) + sum(result.discarded.values()) == REAL[name][1]
    assert len(pairs) > 0.7 * (len(pairs) + sum(result.discarded.values()))
    allowed = [set(pair["choices"]) for pair in pairs if pair["choices"]]
    assert all(pair["target"] in pair["choices"] for pair in pairs if pair["choices"])
    assert bool(allowed) == bool(recipe.choices or recipe.options)
    train = {pair["id"].split("/")[0].split("#")[0] for pair in result.train.to_pylist()}
    assert train.isdisjoint(p["id"].split("/")[0].split("#")[0] for p in result.heldout.to_pylist())


def test_real_content(real: Any) -> None:
    """What the records say stands in the pairs."""
    c3 = {pair["target"] for pair in all_pairs(real("c3"))}
    assert {"A", "B", "C", "D"} <= c3
    assert any(len(target) > 3 for target in c3)  # the templates that ask for the option's text
    assert any(
        "A. 旅行\nB. 坏境\nC. 工作\nD. 家庭" in pair["input"] for pair in all_pairs(real("c3"))
    ) or any("旅行、坏境、工作、家庭" in pair["input"] for pair in all_pairs(real("c3")))
    # Answers are spans of the passage, but for a few that CMRC itself spoils, such as 147.0 for 147.
    assert np.mean([pair["target"].strip() in pair["input"] for pair in all_pairs(real("cmrc"))]) > 0.99
    chid = all_pairs(real("chid"))
    assert all("#idiom#" in pair["input"] for pair in chid)
    spelled = [pair for pair in chid if len(pair["target"]) > 1]
    assert spelled
    assert all(pair["target"] in pair["input"] for pair in spelled)
    kdconv = all_pairs(real("kdconv"))
    assert all(pair["input"].endswith("Assistant:") and pair["turns"] for pair in kdconv)
    assert Counter(pair["target"] for pair in all_pairs(real("ocnli"))).keys() == {"是", "否", "不确定"}
    han = [
        sum("\u4e00" <= c <= "\u9fff" for c in pair["target"]) > 0 for pair in all_pairs(real("wmt-en-zh"))
    ]
    assert 0.4 < np.mean(han) < 0.6  # both directions, two templates each


def test_chain_of_thought(real: Any) -> None:
    result = real("gaokao")
    forms = result.forms()
    assert forms.keys() == {"zero_shot", "cot"}
    assert forms["cot"] > forms["zero_shot"]  # two templates of three
    for pair in all_pairs(result):
        plain = pair["input"].startswith("请直接写出正确选项")
        assert (pair["target"] in "ABCD") == plain
        assert pair["target"][-1] in "ABCD"


def test_a_record_without_reasoning_is_asked_plainly(tmp_path: Path) -> None:
    rows = [{"original_text": f"{n}加1", "equation": "", "ans": str(n + 1)} for n in range(60)]
    result = rendered(on(written(tmp_path / "data.jsonl", rows), "math23k"), "math23k")
    assert result.forms() == {"zero_shot": result.train.num_rows}
    only = "templates=[{input: '{original_text}', target: '{equation}', rationale: equation}]"
    result = rendered(on(tmp_path / "data.jsonl", "math23k", only), "math23k")
    assert result.discarded == {"no_rationale": 60}


# Few-shot


@pytest.mark.parametrize("name", ["bustm", "eprstmt", "ocnli", "thucnews-topic", "tnews", "wmt-en-zh"])
def test_examples_are_of_the_training_part(real: Any, shared: Path, name: str) -> None:
    result = real(name)
    recipe = recipe_of(name, f"source.path={shared / 'data' / REAL[name][0]}")
    (turn,) = [turn for turn in recipe.templates if turn.shots]
    assert turn.example is not None
    lead = turn.input.partition("{examples}")[0]
    few = {
        split: [pair for pair in table.to_pylist() if pair["input"].startswith(lead)]
        for split, table in (("train", result.train), ("heldout", result.heldout))
    }
    assert len(few["train"]) > 10
    own = _examples(recipe, turn.example, name)
    held = {own[i] for i in result.heldout["id"].to_pylist()} - {
        own[i] for i in result.train["id"].to_pylist()
    }
    trained = {own[i] for i in result.train["id"].to_pylist()}
    assert held
    seen = set()
    for pair in few["train"][:60] + few["heldout"]:
        rest = pair["input"].removeprefix(lead)
        drawn = []
        while found := next((text for text in trained if rest.startswith(text)), None):
            drawn.append(found)
            rest = rest.removeprefix(found)
        assert len(drawn) == len(set(drawn)) == turn.shots
        assert own[pair["id"]] not in drawn
        assert not any(text in rest for text in held if text != own[pair["id"]])
        seen |= set(drawn)
    assert len(seen) > 20  # not the same ones for everybody
    assert seen.isdisjoint(held)


def _examples(recipe: TaskRecipe, example: str, name: str) -> dict[str, str]:
    """Every record of a task as a solved example, by its id, rendered as a target of its own."""
    turn = {"input": "{id}", "target": f"{example}|"}
    plain = TaskRecipe.model_validate(
        recipe.model_dump() | {"templates": [turn], "choices": (), "heldout": 0.0}
    )
    table = rendered(plain, name).train
    return {i: t[:-1] for i, t in zip(table["id"].to_pylist(), table["target"].to_pylist(), strict=True)}


def test_the_draw_follows_the_seed_only(shared: Path) -> None:
    path = f"source.path={shared / 'data' / REAL['eprstmt'][0]}"
    one, same, other = (
        rendered(recipe_of("eprstmt", path, f"seed={seed}"), "eprstmt").train for seed in (1, 1, 2)
    )
    assert one == same
    assert one["id"] == other["id"]
    assert one["target"] == other["target"]
    assert one["input"] != other["input"]


def test_no_training_record_means_no_examples(tmp_path: Path) -> None:
    rows = [{"sentence": f"第{n}条", "label": "Positive"} for n in range(30)]
    with pytest.raises(UserError, match="eprstmt: no training record is left to draw examples from"):
        _ = rendered(on(written(tmp_path / "data.jsonl", rows), "eprstmt", "heldout=1.0"), "eprstmt").heldout


# The mix


@pytest.fixture(scope="module")
def mixed(shared, tokenizer_folder, tmp_path_factory):
    """The tasks with data at hand as one mix: 66.7 % English, the Chinese in three parts."""
    root = tmp_path_factory.mktemp("mix")
    inputs, groups, parts = {"tokenizer": tokenizer_folder}, {}, {}
    for name in ("p3", "wmt-en-zh", "tnews", "csl-title", "c3", "cmrc"):
        recipe = recipe_of(name, f"source.path={shared / 'data' / REAL[name][0]}")
        inputs[f"task-{name}"] = root / name
        (root / name).mkdir()
        labelled.build(Build(root / name, TaskStep(name=name, task=recipe), {}))
        groups[name], parts[name] = recipe.source.language, recipe.part
    recipe = InstructRecipe(
        tasks=groups,
        part_of=parts,
        shares={"en": 0.667, "zh": 0.333},
        parts={"zh": {"translation": 50, "classification": 10, "summarization": 15, "reading": 25}},
        encoder_length=1024,
        decoder_length=256,
    )
    (root / "out").mkdir()
    return root / "out", instruct.build(Build(root / "out", recipe, inputs)), recipe


def test_shares_within_one_sample(mixed: Any) -> None:
    out, facts, recipe = mixed
    total = facts["train"]["samples"]
    assert total > 900
    for group, share in recipe.shares.items():
        assert abs(facts["train"]["by_group"][group] - share * total) <= 1
    chinese = facts["train"]["by_group"]["zh"]
    for part, weight in recipe.parts["zh"].items():
        assert abs(facts["train"]["by_part"][f"zh.{part}"] - chinese * weight / 100) < 1
    pairs = Pairs(out, "train")
    found = Counter(pairs.names[pairs.task(index)] for index in range(total))
    assert dict(found) == {name: count for name, count in facts["train"]["by_task"].items() if count}
    assert sum(facts["train"]["over_long"].values()) > 0  # long passages are dropped and counted
    assert not list(out.glob("*.scratch"))


def test_the_largest_mix_without_repetition() -> None:
    recipe = InstructRecipe(
        tasks={"a": "en", "b": "zh", "c": "zh", "d": "zh"},
        part_of={"b": "x", "c": "y", "d": "y"},
        shares={"en": 2 / 3, "zh": 1 / 3},
        parts={"zh": {"x": 1, "y": 3}},
        encoder_length=9,
        decoder_length=9,
    )
    assert counts([1000, 100, 200, 10], recipe, "train") == [([0], 560), ([1], 70), ([2, 3], 210)]
    assert counts([300, 100, 200, 10], recipe, "train") == [([0], 300), ([1], 38), ([2, 3], 112)]
    with pytest.raises(UserError, match=r"parts.zh: part x has no train sample"):
        counts([300, 0, 200, 10], recipe, "train")
    assert counts([300, 0, 200, 10], recipe, "heldout") == [([0], 300), ([1], 0), ([2, 3], 150)]


def test_the_papers_mix() -> None:
    flan = Pipeline(find_pipeline("paper")).config.flan
    english, chinese = sum(flan.parts["en"].values()), sum(flan.parts["zh"].values())
    assert english == pytest.approx(66.6)
    assert chinese == pytest.approx(33.3, abs=0.7)  # four are lower bounds
    official = {
        "flan2021": 0.4,
        "t0": 0.32,
        "super-natural-instructions": 0.2,
        "chain-of-thought": 0.05,
        "dialog": 0.03,
    }
    for part, rate in official.items():
        assert flan.parts["en"][part] / english == pytest.approx(rate, abs=0.001)
    assert Counter(task.group or task.source.language for task in flan.tasks.values()) == {"en": 5, "zh": 29}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("flan.parts.zh.poetry=1", "parts.zh.poetry: no task is of this part"),
        ("flan.tasks.c3.part=riddle", "parts.zh has no weight for the part 'riddle' of task c3"),
        ("flan.tasks=[flan/c3, c3]", "two names end alike"),
        ("flan.tasks.tnews.templates=[{input: a, target: b, shots: 2}]", "shots, example and {examples}"),
        (
            "flan.tasks.kdconv.templates=[{input: a, target: b, rationale: c}]",
            "take no shots and no rationale",
        ),
    ],
)
def test_mistakes_in_a_mix_are_told_before_anything_runs(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        Pipeline(find_pipeline("paper"), [override])
    assert "\n" not in str(error.value)


# Bad records


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("tnews", [{"sentence": "好"}], r"tnews \(.*\): record data.jsonl:1 has no field 'label_desc'; it"),
        (
            "tnews",
            [{"sentence": "好", "label_desc": "news_x"}],
            r"data.jsonl:1: wording.label_desc has no word for 'news_x'",
        ),
        ("csl-title", [{"title": "t", "discipline": "d"}], "record data.jsonl:1 has no field 'abstract'"),
        ("c3", [{"passage": ["p"], "questions": "q"}], "record data.jsonl:1: questions is no list"),
        (
            "c3",
            [{"passage": ["p"], "questions": [{"question": "q", "choices": ["a"], "answer": "b"}]}],
            r"data.jsonl:1/0: answer 'b' is none of its 1 options",
        ),
        ("chid", [{"content": "c", "candidates": ["a"], "answer": 7}], "answer 7 is none of its 1 options"),
        (
            "kdconv",
            [{"domain": "film", "name": "n", "messages": [{"text": "t"}]}],
            r"messages is no list of objects with .message.",
        ),
        ("duie", [{"text": "t", "spo_list": [{"subject": "s"}]}], r"data.jsonl:1: joined.triples: no field"),
        ("math23k", [{"original_text": "o", "ans": "1"}], "record data.jsonl:1 has no field 'equation'"),
    ],
)
def test_a_bad_record_is_one_line(
    name: str, rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "data.jsonl", rows)
    with pytest.raises(UserError, match=message) as error:
        rendered(on(path, name), name)
    assert "\n" not in str(error.value)


def test_a_line_that_is_no_object_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"en": "a", "zh": "b"}\n[1]\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"data.jsonl: row 2"):
        rendered(on(tmp_path / "data.jsonl", "multitarget-ted"), "multitarget-ted")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"wmt-en-zh.*no such file or folder|wmt-en-zh.*no file there"):
        rendered(recipe_of("wmt-en-zh"), "wmt-en-zh")


def test_an_empty_target_is_counted(tmp_path: Path) -> None:
    rows = [
        {"abstract": "a", "title": "t", "keywords": "", "discipline": "d"},
        {**FORMS["csl-keywords"][0][0]},
    ]
    result = rendered(on(written(tmp_path / "d.jsonl", rows), "csl-keywords", "heldout=0"), "csl-keywords")
    assert result.discarded == {"empty": 1}
    assert result.train.num_rows == 1


def test_version_is_part_of_the_identity() -> None:
    before = Pipeline(find_pipeline("paper")).steps
    after = Pipeline(find_pipeline("paper"), ["flan.tasks.c3.version=2"]).steps
    moved = {name for name in before if before[name].fingerprint != after[name].fingerprint}
    assert {"task-c3", "flan", "stage3"} <= moved
    assert "task-cmrc" not in moved


def test_config_reads_a_name_with_folders() -> None:
    config = Config.read(CONFIGS / "flan" / "biflan.yaml")
    assert config.data["tasks"]["c3"]["part"] == "reading"
    assert config.set_by("tasks.c3.part").endswith("configs/task/flan/c3.yaml")
