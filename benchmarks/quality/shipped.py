"""Render every shipped task and benchmark on its real data set if it is at hand, else on made records.

Owns which data set belongs to which file of `configs`, the records that stand in for the others, and the
figure of distinct inputs.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa
from pydantic import TypeAdapter

from benchmarks.figure import ROOT, Figure
from openba.config import CONFIGS, load
from openba.data.fields import Record, expand, names_in
from openba.data.labelled import render
from openba.data.pairs import Rendered
from openba.data.sources import read
from openba.recipes.data import SourceRecipe, TaskRecipe
from openba.recipes.evaluate import BenchmarkRecipe

DATA = ROOT.parent / "shared" / "data"
REAL = {
    "task/flan/bustm": "flan_fewclue_zh/bustm.jsonl",
    "task/flan/c3": "flan_c3_zh/train.jsonl",
    "task/flan/chid": "flan_fewclue_zh/chid.jsonl",
    "task/flan/cluewsc": "flan_fewclue_zh/cluewsc.jsonl",
    "task/flan/cmrc": "raw_zh_wiki_qa/docs.jsonl",
    "task/flan/csl-discipline": "raw_zh_science_abstracts/docs.jsonl",
    "task/flan/csl-keyword-check": "flan_fewclue_zh/csl.jsonl",
    "task/flan/csl-title": "raw_zh_science_abstracts/docs.jsonl",
    "task/flan/csldcp": "flan_fewclue_zh/csldcp.jsonl",
    "task/flan/drcd-title": "raw_zh_hant_wiki/docs.jsonl",
    "task/flan/eprstmt": "flan_fewclue_zh/eprstmt.jsonl",
    "task/flan/gaokao": "flan_gaokao_zh/questions.jsonl",
    "task/flan/iflytek": "flan_fewclue_zh/iflytek.jsonl",
    "task/flan/kdconv": "chat_kdconv_zh/dialogues.jsonl",
    "task/flan/ocnli": "flan_fewclue_zh/ocnli.jsonl",
    "task/flan/p3": "flan_p3_en/train.jsonl",
    "task/flan/pclue": "flan_pclue_zh/train.jsonl",
    "task/flan/thucnews-topic": "raw_zh_news_titles/titles.jsonl",
    "task/flan/tnews": "flan_fewclue_zh/tnews.jsonl",
    "task/flan/wmt-en-zh": "flan_wmt_zh_en/train.jsonl",
    "task/expert/chat-moss": "chat_moss/conversations.jsonl",
    "task/expert/chat-sharegpt": "chat_sharegpt_zh/conversations.jsonl",
    "task/expert/chat-belle": "instruct_alpaca_zh/train.jsonl",
    "task/expert/code-evol": "code_codealpaca/train.jsonl",
    "task/expert/tool-search": "tool_moss_search/conversations.jsonl",
    "task/expert/ner-pile": "ner_open_domain/pile_ner_sample.jsonl",
    "benchmark/expert/chat-sharegpt": "chat_sharegpt_zh/conversations.jsonl",
    "benchmark/expert/tool-search": "tool_moss_search/conversations.jsonl",
    "benchmark/paper/mmlu": "eval_mmlu/*.jsonl",
    "benchmark/paper/mmlu-5shot": "eval_mmlu/*.jsonl",
    "benchmark/paper/mmlu-cot": "eval_mmlu/*.jsonl",
    "benchmark/paper/cmmlu": "eval_cmmlu/*.jsonl",
    "benchmark/paper/cmmlu-5shot": "eval_cmmlu/*.jsonl",
    "benchmark/paper/cmmlu-cot": "eval_cmmlu/*.jsonl",
    "benchmark/paper/ceval": "eval_ceval/*.jsonl",
    "benchmark/paper/ceval-5shot": "eval_ceval/*.jsonl",
    "benchmark/paper/ceval-cot": "eval_ceval/*.jsonl",
    "benchmark/paper/bbh": "eval_bbh/bbh/*.json",
    "benchmark/paper/bbh-cot": "eval_bbh/bbh/*.json",
    "benchmark/paper/belebele-en": "eval_belebele_en/eng_Latn.jsonl",
    "benchmark/paper/superglue-boolq": "eval_superglue/BoolQ/val.jsonl",
    "benchmark/paper/superglue-cb": "eval_superglue/CB/val.jsonl",
    "benchmark/paper/superglue-rte": "eval_superglue/RTE/val.jsonl",
    "benchmark/paper/superglue-record": "eval_superglue/ReCoRD/train.jsonl",
    "benchmark/paper/superglue-wsc": "eval_superglue/WSC/val.jsonl",
    "benchmark/paper/superglue-wic": "eval_superglue/WiC/val.jsonl",
    "benchmark/paper/superglue-copa": "eval_superglue/COPA/val.jsonl",
    "benchmark/paper/superglue-multirc": "eval_superglue/MultiRC/val.jsonl",
    "benchmark/paper/flores-zh-en": "eval_flores_zh_en/dev.jsonl",
    "benchmark/paper/flores-en-zh": "eval_flores_zh_en/dev.jsonl",
    "benchmark/paper/clts": "eval_clts/samples.jsonl",
    "benchmark/paper/wikiauto": "eval_wikiauto_turk/valid.jsonl",
    "benchmark/paper/qqp": "eval_qqp/valid.jsonl",
    "benchmark/paper/roc": "eval_rocstories/stories.jsonl",
    "benchmark/paper/ner-mit-restaurant": "ner_mit/restaurant/*.jsonl",
    "benchmark/paper/ner-mit-movie": "ner_mit/movie_trivia10k13/*.jsonl",
    "benchmark/paper/ner-crossner-music": "ner_crossner/music/*.jsonl",
    "benchmark/paper/ner-crossner-politics": "ner_crossner/politics/*.jsonl",
    "benchmark/paper/ner-crossner-science": "ner_crossner/science/*.jsonl",
    "benchmark/paper/humaneval": "code_humaneval/problems.jsonl",
}
"""File of `configs`, without its suffix -> its data set below `../shared/data`."""

_PAIR = {"inputs": "Is ice cold?", "targets": "yes"}
_BELEBELE = {
    "flores_passage": "冰是固态的水。", "question": "冰是什么？", "mc_answer1": "水", "mc_answer2": "火",
    "mc_answer3": "土", "mc_answer4": "风", "correct_answer_num": "1",
}  # fmt: skip
_TAGGED = {"tokens": ["Ada", "of", "London"], "tags": ["B-person", "O", "B-city"]}
_DIALOGUE = {
    "log": [
        {
            "user utterance": "Where is the old lighthouse of the harbour?",
            "system response": "It stands behind the northern wall.",
        }
    ]
}
MADE: dict[str, dict[str, Any]] = {
    "task/expert/chat-dialogstudio": _DIALOGUE,
    "benchmark/expert/chat-dialogstudio": _DIALOGUE,
    "task/flan/flan2021": _PAIR,
    "task/flan/t0": _PAIR,
    "task/flan/super-natural-instructions": _PAIR,
    "task/flan/chain-of-thought": _PAIR,
    "task/flan/dialog": _PAIR,
    "task/flan/wikititles": {"en": "Ice", "zh": "冰"},
    "task/flan/translation2019zh": {"english": "Ice", "chinese": "冰"},
    "task/flan/multitarget-ted": {"en": "Ice", "zh": "冰"},
    "task/flan/douban": {"turns": ["在吗", "在的"]},
    "task/flan/chinese-persona-chat": {"persona": ["我爱猫"], "turns": ["你好", "喵"]},
    "task/flan/cmnli": {"sentence1": "猫睡了", "sentence2": "猫醒着", "label": "contradiction"},
    "task/flan/cinlid": {"phrase1": "画蛇添足", "phrase2": "多此一举", "label": "entailment"},
    "task/flan/afqmc": {"sentence1": "怎么还款", "sentence2": "如何还款", "score": 1},
    "task/flan/csl-keywords": {
        "abstract": "研究",
        "title": "论冰",
        "keywords": "冰_水",
        "discipline": "物理",
    },
    "task/flan/wikilingua-zh": {"document": "先烧水，再下面。", "summary": "煮面"},
    "task/flan/duie": {
        "text": "甲生于乙",
        "spo_list": [{"subject": "甲", "predicate": "出生地", "object": {"@value": "乙"}}],
    },
    "task/flan/advertisegen": {"content": "类型#裙*颜色#蓝色", "summary": "蓝裙子"},
    "task/flan/nlpcc2014-news": {"text": "球队取胜", "category": "体育"},
    "task/flan/chinese-biomedical-qa": {"questionText": "哪种？", "options": ["甲", "乙"], "answer": "B"},
    "task/flan/nlpcc2014-sentiment": {"text": "很好", "label": 1},
    "task/flan/msra-ner": {
        "text": "王五在北京大学",
        "entities": [["王五", "人名"], ["北京", "地名"], ["北京大学", "机构"]],
    },
    "task/flan/drcd": {
        "title": "冰",
        "paragraphs": [
            {"context": "冰是水", "id": "p", "qas": [{"question": "是？", "answers": [{"text": "水"}]}]}
        ],
    },
    "task/flan/math23k": {"original_text": "1加1", "equation": "x=1+1", "ans": "2"},
    "task/expert/instructgen-dolly": {
        "instruction": "Name a fruit", "context": "", "response": "Apple", "category": "qa",
    },
    "task/expert/instructgen-lima": {"conversations": ["Name a fruit", "Apple"]},
    "task/expert/instructgen-lima-zh": {"conversations": ["说一种水果", "苹果"]},
    "task/expert/tool-toolformer": {
        "instruction": "Complete", "input": "Paris is", "output": 'Retrieval("Paris")',
    },
    "benchmark/expert/instructgen-dolly": {
        "instruction": "Name a fruit", "context": "", "response": "Apple", "category": "qa",
    },
    "benchmark/expert/instructgen-lima-zh": {"conversations": ["说一种水果", "苹果"]},
    "benchmark/expert/tool-toolformer": {
        "instruction": "Complete", "input": "Paris is", "output": 'Retrieval("Paris")',
    },
    "benchmark/paper/belebele-zh-hans": _BELEBELE,
    "benchmark/paper/belebele-zh-hant": _BELEBELE,
    "benchmark/paper/superglue-axb": {
        "sentence1": "It rained.", "sentence2": "It was wet.", "label": "entailment",
    },
    "benchmark/paper/superglue-axg": {
        "premise": "It rained.", "hypothesis": "It was wet.", "label": "entailment", "pair_id": "1",
    },
    "benchmark/paper/ner-crossner-ai": _TAGGED,
    "benchmark/paper/ner-crossner-literature": _TAGGED,
}  # fmt: skip
"""File of `configs` whose data set is not at hand -> a record of the form that it declares."""
_MADE_RECORDS = 200


@dataclass(frozen=True)
class Shipped:
    """One rendered task or benchmark, few-shot templates without their examples."""

    name: str
    recipe: TaskRecipe
    documents: pa.Table
    rendered: Rendered

    def pairs(self) -> list[dict[str, Any]]:
        """All pairs, repetitions of the training part left out."""
        unrepeated = len(self.rendered.rows["train"])
        return [*self.rendered.train.slice(0, unrepeated).to_pylist(), *self.rendered.heldout.to_pylist()]

    def distinct(self) -> tuple[float, float]:
        """Return the number of different inputs as a share of the different questions, and of all pairs.

        Published sets hold some questions twice (SuperGLUE's WSC has 47 different ones in 52), which no
        template can mend. Questions are told apart by the raw values of the fields that the templates name.
        """
        pairs = self.pairs()
        inputs = len({pair["input"] for pair in pairs})
        if self.recipe.conversation:  # its inputs hold the whole history, or rendering fails
            return 1.0, inputs / len(pairs)
        raw = self.raw_records()
        marked = self.recipe.marked.values()
        made_from = [part for mark in marked for part in (f"{{{mark.text}}}", mark.position)]
        named = names_in((*(turn.input for turn in self.recipe.templates), *made_from))
        named -= self.recipe.marked.keys()
        questions = {_question(raw[pair["id"]], named, pair["input"]) for pair in pairs}
        return inputs / len(questions), inputs / len(pairs)

    def raw_records(self) -> dict[str, dict[str, Any]]:
        """Identity -> the record's own fields, taken from its JSON without the task's own reading of it."""
        records: dict[str, dict[str, Any]] = {}
        for row in self.documents.to_pylist():
            outer = Record(row["id"], {"text": row["text"], **orjson.loads(row["extra"])})
            records |= {record.identity: record.fields for record in expand(outer, self.recipe, self.name)}
        return records


def _question(fields: dict[str, Any], named: Iterable[str], text: str) -> str:
    """Fields of a record: plain values that the templates name, and of nested ones the texts in `text`."""
    parts = []
    for name in sorted(named):
        value = fields.get(name, fields)
        nested = isinstance(value, list | dict)
        parts.append(sorted({leaf for leaf in _leaves(value) if leaf in text}) if nested else value)
    return json.dumps(parts)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif isinstance(value, str):
        yield value


def names() -> list[str]:
    """Return all tasks and benchmarks as `task/FOLDER/NAME`."""
    files = [path for kind in ("task", "benchmark") for path in (CONFIGS / kind).rglob("*.yaml")]
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in files)


def has_data(name: str) -> bool:
    """Whether the real records are at hand: of a package, in the repository, or of `../shared`."""
    return name not in MADE and (name not in REAL or DATA.exists())


def overrides(name: str) -> list[str]:
    """Return overrides that put a task or benchmark on its data set of `../shared`, if it needs any."""
    if name not in REAL:
        return []
    prefix = "task." if name.startswith("benchmark/") else ""
    changed = [f"{prefix}source.path={DATA / REAL[name]}"]
    if name == "benchmark/paper/bbh-cot":
        changed.append(f"{prefix}beside.prompt={DATA / 'eval_bbh'}/cot-prompts/{{id.file}}.txt")
    return changed


def rendered(name: str, folder: Path) -> Shipped:
    """Render a task or benchmark; made records are written into `folder`."""
    file = CONFIGS / f"{name}.yaml"
    recipe = (
        load(file, BenchmarkRecipe, overrides(name)).task
        if name.startswith("benchmark/")
        else load(file, TaskRecipe, overrides(name))
    )
    if name in MADE:
        recipe = _on_made_records(name, recipe, folder)
    return without_examples(name, recipe)


def without_examples(name: str, recipe: TaskRecipe) -> Shipped:
    """Read and render a task whose few-shot templates lose their examples."""
    turns = [
        {
            "input": turn.input.replace("{examples}", ""),
            "target": turn.target,
            "starts": turn.starts,
            "rationale": turn.rationale,
        }
        for turn in recipe.templates
    ]
    recipe = TaskRecipe.model_validate({**recipe.model_dump(), "templates": turns})
    documents = _documents(recipe.source.model_dump_json())
    return Shipped(name, recipe, documents, render(recipe, documents, name))


@lru_cache(maxsize=4)  # several tasks read the functions of the standard library, which takes seconds
def _documents(source: str) -> pa.Table:
    return pa.Table.from_batches(read("shipped", TypeAdapter(SourceRecipe).validate_json(source)))


def _on_made_records(name: str, recipe: TaskRecipe, folder: Path) -> TaskRecipe:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "test" if recipe.partition else "data"
    path = folder / f"{stem}.jsonl"
    unvaried_keys = {
        *recipe.wording,
        "correct_answer_num",
        "tags",
        *((recipe.options.answer,) if recipe.options else ()),
    }
    with path.open("w", encoding="utf-8") as out:
        for number in range(_MADE_RECORDS):
            out.write(json.dumps(_varied(MADE[name], number, unvaried_keys), ensure_ascii=False) + "\n")
    source = {
        "adapter": "jsonl", "path": str(path), "text_field": None, "language": recipe.source.language,
        "licence": recipe.source.licence,
    }  # fmt: skip
    return TaskRecipe.model_validate({**recipe.model_dump(), "source": source})


def _varied(value: Any, number: int, unvaried_keys: set[str]) -> Any:
    """Return a record with a number in each of its texts, those under the keys `unvaried_keys` aside."""
    if isinstance(value, str):
        return f"{value} {_word(number)}"
    if isinstance(value, list):
        if (
            len(value) == 2
            and all(isinstance(part, str) for part in value)
            and value[1] in ("人名", "地名", "机构")
        ):
            return [f"{value[0]} {_word(number)}", value[1]]
        return [_varied(element, number, unvaried_keys) for element in value]
    if isinstance(value, dict):
        return {
            key: inner if key in unvaried_keys else _varied(inner, number, unvaried_keys)
            for key, inner in value.items()
        }
    return value


def _word(number: int) -> str:
    return "".join(string.ascii_lowercase[int(digit)] for digit in f"{number:03}")


def figures() -> Iterator[Figure]:
    """Yield the lowest shares of distinct inputs over all tasks and benchmarks with real data."""
    with TemporaryDirectory() as folder:
        shares = {name: rendered(name, Path(folder)).distinct() for name in names() if has_data(name)}
    for position, of in enumerate(("different questions", "all records")):
        worst = min(shares, key=lambda name: shares[name][position])
        name = f"distinct inputs of {of}, lowest of {len(shares)}: {worst}"
        yield Figure(name, 100 * shares[worst][position], "%", 99, "higher")
