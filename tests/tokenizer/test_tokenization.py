"""The tokenizer of transformers: the ids of ours, at home in a folder that knows nothing of this package."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import instruct, labelled, sources
from openba.data.conversations import clean, history
from openba.data.instruct import Pairs, encode_input
from openba.recipes.data import InstructRecipe, SourceStep, TaskRecipe, TaskStep
from openba.tokenizer.files import MODULES, write_tokenizer_files
from openba.tokenizer.pieces_openba import MODEL_FILE
from openba.tokenizer.tokenization_openba import OpenBATokenizer
from openba.tokenizer.tokenizer import SWITCH, Tokenizer

NASTY = "Hi </s> <extra_id_0><S> <pad>\n\t Human: x Assistant: <unk><0x0A>"

text = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from([NASTY, "中文，ＡＢ  x", "", " "])
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": text}),
    min_size=1,
    max_size=5,
)

Pair = tuple[Tokenizer, OpenBATokenizer]


def pair(path: Path, folder: Path, whitespace: bool) -> Pair:
    folder.mkdir()
    ours = Tokenizer(path, whitespace)
    write_tokenizer_files(folder, ours)
    return ours, OpenBATokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def small(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Trained here, by which the identity is tested without the real file."""
    return pair(tokenizer_folder / MODEL_FILE, tmp_path_factory.mktemp("small") / "folder", False)


@pytest.fixture(scope="module")
def spaced(mt5_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """With the whitespace tokens."""
    return pair(mt5_like, tmp_path_factory.mktemp("spaced") / "folder", True)


@pytest.fixture(scope="module", params=["released", "whitespace"])
def mt5(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = shared / "data" / "tokenizer_mt5" / MODEL_FILE
    folder = tmp_path_factory.mktemp("mt5") / "folder"
    return pair(path, folder, request.param == "whitespace")


@pytest.mark.parametrize("which", ["small", "spaced"])
@settings(max_examples=40)
@given(text=text)
@example(NASTY)
def test_ids_are_ours_on_any_text(which: str, small: Pair, spaced: Pair, text: str) -> None:
    ours, theirs = {"small": small, "spaced": spaced}[which]
    ids = ours.encode(text)
    assert theirs(text).input_ids == [*ids, 1]
    assert theirs(text, add_special_tokens=False).input_ids == ids
    assert theirs.convert_tokens_to_ids(theirs.tokenize(text)) == ids
    asked = theirs(text, split_special_tokens=False, add_special_tokens=False).input_ids
    assert asked == ours.encode(text, control_tokens=True)
    assert theirs(text, prompt=True).input_ids == encode_input(ours, text, (), 10**6)
    cut = theirs(text, prompt=True, truncation=True, max_length=9).input_ids
    assert cut == encode_input(ours, text, (), 9)
    assert theirs.decode([*ids, 1], skip_special_tokens=True) == ours.decode(ids)
    assert theirs.decode([ours.mode("S"), *ids, 1]) == ours.show([ours.mode("S"), *ids, 1])


def test_ids_are_ours_with_the_real_file(mt5: Pair, shared: Path) -> None:
    ours, theirs = mt5
    lines = (shared / "data" / "chat_moss" / "conversations.jsonl").read_text(encoding="utf-8").splitlines()
    for line in [*lines[:60], NASTY, " a  b ", ""]:
        assert theirs(line).input_ids == [*ours.encode(line), 1]
    assert len(theirs) == theirs.vocab_size == ours.size == (250302 if ours.whitespace else 250203)
    names = ["<extra_id_0>", "<extra_id_99>", "<R>", "<S>", "<X>"]
    assert theirs.convert_tokens_to_ids(names) == [250199, 250100, 250200, 250201, 250202]
    code = "def f(x):\n\treturn x  # ，\n"
    assert (theirs.decode(theirs(code).input_ids, skip_special_tokens=True) == code) is ours.whitespace
    shown = theirs.decode(theirs("a <extra_id_0> b", split_special_tokens=False).input_ids)
    assert shown == ("a <extra_id_0> b</s>" if ours.whitespace else "a<extra_id_0> b</s>")


def test_ids_and_settings_are_the_releases(small: Pair) -> None:
    _, theirs = small
    assert (theirs.pad_token_id, theirs.eos_token_id, theirs.unk_token_id) == (0, 1, 2)
    assert (theirs.padding_side, theirs.model_input_names) == ("right", ["input_ids", "attention_mask"])
    assert theirs.bos_token_id is None
    assert len(theirs.all_special_ids) == 106
    assert len(theirs.get_vocab()) == len(theirs)
    assert {i: theirs.convert_ids_to_tokens(i) for i in range(len(theirs))} == {
        i: token for token, i in theirs.get_vocab().items()
    }


def test_batches_are_padded_on_the_right(small: Pair) -> None:
    ours, theirs = small
    batch = theirs(["a", NASTY, ""], padding=True, return_tensors="pt")
    lengths = [len(ours.encode(each)) + 1 for each in ("a", NASTY, "")]
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["input_ids"][0].tolist() == [*ours.encode("a"), 1, *[0] * (lengths[1] - lengths[0])]
    prompts = theirs(["a", NASTY], prompt=True, padding=True)
    assert prompts["input_ids"][1] == ours.pieces.prompt(ours.encode(NASTY))
    assert [sum(mask) for mask in prompts["attention_mask"]] == [lengths[0] + 2, lengths[1] + 2]
    with pytest.raises(ValueError, match="a prompt is one text"):
        theirs("a", "b", prompt=True)


@settings(max_examples=40)
@given(messages=messages, room=st.integers(3, 60))
def test_a_conversation_is_what_the_experts_read(
    small: Pair, messages: list[dict[str, str]], room: int
) -> None:
    ours, theirs = small
    told, turns = history([{**message, "content": message["content"].strip()} for message in messages])
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert ids == encode_input(ours, told, turns, 10**6)
    assert theirs.apply_chat_template(messages, tokenize=False) == f"<S>{told}<extra_id_0></s>"
    cut = theirs.apply_chat_template(messages, truncation=True, max_length=room)
    assert cut["input_ids"] == encode_input(ours, told, turns, room)


def test_no_content_brings_a_control_token_in(small: Pair, spaced: Pair) -> None:
    turns = [{"role": "user", "content": NASTY}, {"role": "assistant", "content": NASTY}]
    conversation = [{"role": "system", "content": NASTY}, *turns, turns[0]]
    for ours, theirs in (small, spaced):
        for asked in ({}, {"tokenizer_kwargs": {"split_special_tokens": False}}, {"padding": True}):
            ids = theirs.apply_chat_template(conversation, return_dict=False, **asked)
            assert [i for i in ids if not ours.pieces.is_text(i)] == [ours.mode("S"), ours.sentinel(0), 1]
    batch = small[1].apply_chat_template([conversation, turns[:1]], padding=True, return_tensors="pt")
    alone = small[1].apply_chat_template(turns[:1], return_dict=False)
    assert batch["input_ids"][1].tolist()[: len(alone)] == alone


def test_the_template_gives_the_pairs_the_chat_expert_trains_on(small: Pair, tmp_path: Path) -> None:
    ours, theirs = small
    recipe = load(CONFIGS / "task" / "chat-en.yaml", TaskRecipe)
    for name in ("source", "task", "pairs", "tokenizer"):
        (tmp_path / name).mkdir()
    write_tokenizer_files(tmp_path / "tokenizer", ours)
    sources.build(Build(tmp_path / "source", SourceStep(name="chat-en", source=recipe.source), {}))
    labelled.build(Build(tmp_path / "task", TaskStep(name="chat-en", task=recipe), {}))
    mix = InstructRecipe(tasks={"chat-en": "en"}, encoder_length=1024, decoder_length=256)
    inputs = {"tokenizer": tmp_path / "tokenizer", "task-chat-en": tmp_path / "task"}
    instruct.build(Build(tmp_path / "pairs", mix, inputs))
    rows = pq.read_table(tmp_path / "source" / "documents.parquet", columns=["extra"])["extra"].to_pylist()
    asked = set()
    for row in rows:
        spoken, _ = clean(json.loads(row)["messages"])
        for i, message in enumerate(spoken):
            if i and message["role"] == "assistant":
                asked.add(tuple(theirs.apply_chat_template(spoken[:i], return_dict=False)))
    pairs = Pairs(tmp_path / "pairs", "train")
    assert len(pairs) > 500
    assert {tuple(pairs.source(i).tolist()) for i in range(len(pairs))} <= asked


def test_a_folder_of_mt5s_own_loads_too(shared: Path) -> None:
    """Its config says nothing of ours, and `additional_special_tokens: null`."""
    folder = shared / "data" / "tokenizer_mt5"
    theirs = OpenBATokenizer.from_pretrained(folder)
    assert theirs(NASTY).input_ids == [*Tokenizer.load(folder).encode(NASTY), 1]
    assert len(theirs.all_special_ids) == 106
    assert theirs.chat_template
    with pytest.raises(ValueError, match="whitespace_tokens: 'yes' is neither true nor false"):
        OpenBATokenizer.from_pretrained(folder, whitespace_tokens="yes")


def test_a_wrong_role_and_a_wrong_template_are_refused(small: Pair) -> None:
    theirs = small[1]
    with pytest.raises(Exception, match="role tool is not one of system, user, assistant"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="a chat template starts with <S>"):
        theirs.apply_chat_template([{"role": "user", "content": "x"}], chat_template="bare")


@pytest.mark.parametrize("which", ["small", "spaced"])
def test_saved_and_loaded_it_is_the_same(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    ours, theirs = request.getfixturevalue(which)
    theirs.save_pretrained(tmp_path)
    assert {*MODULES, MODEL_FILE, "tokenizer_config.json", "chat_template.jinja"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())[SWITCH] is (which == "spaced")
    for again in (OpenBATokenizer.from_pretrained(tmp_path), pickle.loads(pickle.dumps(theirs))):
        assert again(NASTY).input_ids == theirs(NASTY).input_ids
        assert again.chat_template == theirs.chat_template
        assert len(again) == len(theirs)
    assert Tokenizer.load(tmp_path).encode(NASTY) == ours.encode(NASTY)


def test_a_users_own_tokens_come_after_ours(small: Pair, tmp_path: Path) -> None:
    ours, _ = small
    write_tokenizer_files(tmp_path, ours)
    theirs = OpenBATokenizer.from_pretrained(tmp_path)
    assert theirs.add_tokens(["<call>"]) == 1
    assert theirs.convert_tokens_to_ids("<call>") == ours.size == len(theirs) - 1
    expected = [*ours.encode("a"), ours.size, *ours.encode("b")]
    for split in (True, False):
        ids = theirs("a<call>b", split_special_tokens=split, add_special_tokens=False).input_ids
        assert ids == expected
    assert theirs.decode(expected, skip_special_tokens=True) == "a<call>b"
    assert theirs("a<call>b", prompt=True).input_ids == ours.pieces.prompt(expected)
    chat = theirs.apply_chat_template([{"role": "user", "content": "a<call>b</s>"}], return_dict=False)
    assert chat.count(ours.size) == 1
    assert chat.count(ours.eos) == 1  # the prompt's own: what is spelt </s> in a content stays text
    ids = theirs("</s><call></s>", add_special_tokens=False).input_ids
    assert ids == [*ours.encode("</s>"), ours.size, *ours.encode("</s>")]


def test_options_of_a_users_token_are_obeyed(small: Pair, tmp_path: Path) -> None:
    ours, _ = small
    write_tokenizer_files(tmp_path, ours)
    theirs = OpenBATokenizer.from_pretrained(tmp_path)
    theirs.add_tokens([AddedToken("<a>", lstrip=True, rstrip=True), AddedToken("end", single_word=True)])
    first, second = theirs.convert_tokens_to_ids(["<a>", "end"])
    read = theirs("x  <a>  end endless", add_special_tokens=False).input_ids
    assert read == [*ours.encode("x"), first, second, *ours.encode(" endless")]
    theirs.add_special_tokens({"extra_special_tokens": ["<call>"]})
    assert theirs.convert_tokens_to_ids("<call>") not in theirs("<call>").input_ids  # as control tokens


def test_truncation_takes_the_side_and_the_length_that_are_set(small: Pair, tmp_path: Path) -> None:
    ours, _ = small
    write_tokenizer_files(tmp_path, ours, model_max_length=12)
    theirs = OpenBATokenizer.from_pretrained(tmp_path, truncation_side="left")
    text = "one two three four five six seven eight nine"
    ids = ours.encode(text)
    assert theirs(text, prompt=True, truncation=True, max_length=9).input_ids == ours.pieces.prompt(ids[-6:])
    turns = [{"role": "user", "content": text}] * 3
    assert len(theirs.apply_chat_template(turns, truncation=True)["input_ids"]) == 12
    with pytest.raises(ValueError, match="no length is stated"):
        small[1].apply_chat_template(turns, truncation=True)


def test_parts_of_a_content_are_joined_and_what_is_no_text_is_refused(small: Pair) -> None:
    theirs = small[1]
    parts = [{"type": "text", "text": "房间"}, {"type": "text", "text": "很干净"}]
    one = theirs.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert one == theirs.apply_chat_template([{"role": "user", "content": "房间很干净"}], tokenize=False)
    image = [*parts, {"type": "image", "url": "x.png"}]
    with pytest.raises(ValueError, match="message 0: a part of its content is no text"):
        theirs.apply_chat_template([{"role": "user", "content": image}])
    for asked in ("tools", "documents"):
        with pytest.raises(ValueError, match=f"{asked}: the chat template has no place for them"):
            theirs.apply_chat_template([{"role": "user", "content": "x"}], **{asked: [{"name": "f"}]})


CHILD = """
import json, sys
sys.modules["openba"] = None  # an import of it would raise
from transformers import AutoTokenizer
folder, text, messages = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print(json.dumps({
    "class": type(tokenizer).__name__, "length": len(tokenizer), "ids": tokenizer(text).input_ids,
    "prompt": tokenizer(text, prompt=True).input_ids,
    "chat": tokenizer.apply_chat_template(messages, return_dict=False),
    "text": tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True),
}))
"""


def test_a_folder_loads_where_openba_is_not(tokenizer_folder: Path, tmp_path: Path) -> None:
    ours = Tokenizer.load(tokenizer_folder)
    folder = tmp_path / "exported"
    folder.mkdir()
    write_tokenizer_files(folder, ours)
    spoken = [{"role": "user", "content": NASTY}]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, str(folder), NASTY, json.dumps(spoken)],
        cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found == {
        "class": "OpenBATokenizer",
        "length": ours.size,
        "ids": [*ours.encode(NASTY), 1],
        "prompt": encode_input(ours, NASTY, (), 1000),
        "chat": encode_input(ours, history(spoken)[0], (), 1000),
        "text": NASTY,
    }


def test_writing_the_files_imports_no_transformers(root: Path) -> None:
    code = "import sys, openba.tokenizer.files; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_bad_file_is_one_line(small: Pair, damage: str, tmp_path: Path) -> None:
    write_tokenizer_files(tmp_path, small[0])
    whole = (tmp_path / MODEL_FILE).read_bytes()
    wrong = {"cut": whole[: len(whole) // 2], "other": b"%PDF-1.4\n" * 50}[damage]
    (tmp_path / MODEL_FILE).write_bytes(wrong)
    with pytest.raises(ValueError, match="not a readable SentencePiece model") as error:
        OpenBATokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_ids_outside_the_vocabulary_are_named(small: Pair) -> None:
    ours, theirs = small
    for wrong in (-100, ours.size):
        for skip in (True, False):
            with pytest.raises(ValueError, match=f"id {wrong} at position 1"):
                theirs.decode([300, wrong], skip_special_tokens=skip)
