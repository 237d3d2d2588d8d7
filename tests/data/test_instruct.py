"""Token pairs of real tasks: the release's form, too long samples, shares, order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from openba.artifacts import Build
from openba.config import CONFIGS, load
from openba.data import instruct, labelled, sources, tokenizer_training
from openba.data.instruct import Pairs, encode_input
from openba.errors import UserError
from openba.recipes.data import InstructRecipe, SourceStep, TaskRecipe, TaskStep, TokenizerRecipe
from openba.tokenizer.tokenizer import Tokenizer

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = {"chat-en": "en", "bbc-topic": "en", "chat-zh": "zh", "translate-en-zh": "zh"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Task steps of four shipped tasks and a tokenizer trained on their sources."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "corpus").mkdir()
    built: dict[str, Path] = {}
    for name in NAMES:
        recipe = load(CONFIGS / "task" / f"{name}.yaml", TaskRecipe)
        source, task = root / f"source-{name}", root / f"task-{name}"
        source.mkdir()
        task.mkdir()
        sources.build(Build(source, SourceStep(name=name, source=recipe.source), {}))
        labelled.build(Build(task, TaskStep(name=name, task=recipe), {}))
        (source / "documents.parquet").rename(root / "corpus" / f"{name}.parquet")
        built[f"task-{name}"] = task
    (root / "tokenizer").mkdir()
    recipe = TokenizerRecipe(kind="unigram", vocab_size=4000, train_characters=400_000)
    tokenizer_training.build(Build(root / "tokenizer", recipe, {"corpus": root / "corpus"}))
    return {**built, "tokenizer": root / "tokenizer"}


@pytest.fixture
def make(inputs, tmp_path):
    """Build a mix; gives its folder and facts."""

    def run(folder: str = "out", names: dict[str, str] | None = None, **fields) -> tuple[Path, dict]:
        fields = {"encoder_length": 128, "decoder_length": 64, **fields}
        out = tmp_path / folder
        out.mkdir()
        recipe = InstructRecipe(tasks=NAMES if names is None else names, **fields)
        return out, instruct.build(Build(out, recipe, inputs))

    return run


def rows(inputs: dict[str, Path], name: str, split: str) -> list[dict]:
    return pq.read_table(inputs[f"task-{name}"] / f"{split}.parquet").to_pylist()


@pytest.mark.parametrize("over_long", ["drop", "truncate"])
def test_files_are_what_a_plain_loop_in_memory_gives(inputs, make, over_long):
    """Sample by sample: encode, wrap, drop or cut, take those of lowest hash, order by another hash."""
    tokens, shares = Tokenizer.load(inputs["tokenizer"]), {"en": 0.667, "zh": 0.333}
    names = {"bbc-topic": "en", "translate-en-zh": "zh"}
    out, _ = make(
        over_long, names=names, shares=shares, encoder_length=115, decoder_length=12, over_long=over_long
    )
    samples = []
    for name, group in names.items():
        for row in rows(inputs, name, "train"):
            source = [tokens.mode("S"), *tokens.encode(row["input"]), tokens.sentinel(0), tokens.eos]
            target = [tokens.sentinel(0), *tokens.encode(row["target"]), tokens.eos]
            if len(source) > 115 or len(target) > 12:
                if over_long == "drop":
                    continue
                source, target = source[:-2][:113] + source[-2:], target[:12]
            samples.append((f"{name}/{row['id']}".encode(), group, source, target))
    have = {group: sum(sample[1] == group for sample in samples) for group in shares}
    total = min(have[group] / share for group, share in shares.items())
    chosen = []
    for group, share in shares.items():
        members = [sample for sample in samples if sample[1] == group]
        members.sort(key=lambda sample: xxhash.xxh3_64_intdigest(sample[0], 1234))
        chosen += members[: int(total * share + 1e-6)]
    chosen.sort(key=lambda sample: xxhash.xxh3_64_intdigest(sample[0], 1235))
    pairs = Pairs(out, "train")
    assert len(pairs) == len(chosen) > 300
    for index, (key, _, source, target) in enumerate(chosen):
        assert pairs.names[pairs.task(index)] == key.decode().partition("/")[0]
        assert pairs.source(index).tolist() == source
        assert pairs.target(index).tolist() == target


def test_samples_have_the_releases_form(inputs, make):
    out, _ = make()
    tokens = Tokenizer.load(inputs["tokenizer"])
    pairs = Pairs(out, "train")
    known = {
        (row["input"][turn:], row["target"])  # a conversation may begin at any of its turns
        for name in NAMES
        for row in rows(inputs, name, "train")
        for turn in row["turns"] or [0]
    }
    for index in range(0, len(pairs), 97):
        source, target = pairs.source(index), pairs.target(index)
        assert source.dtype == target.dtype == np.int32
        assert source[0] == tokens.mode("S")
        assert source[-2:].tolist() == [tokens.sentinel(0), tokens.eos]
        assert target[0] == tokens.sentinel(0)
        assert target[-1] == tokens.eos
        assert (tokens.decode(source), tokens.decode(target)) in known


def test_ids_are_the_released_ones(inputs, tmp_path):
    model = SHARED / "tokenizer_mt5" / "spiece.model"
    if not model.exists():
        pytest.skip("shared/data/tokenizer_mt5 is not here")
    (tmp_path / "out").mkdir()
    (tmp_path / "spiece.model").symlink_to(model)
    recipe = InstructRecipe(tasks={"bbc-topic": "en"}, encoder_length=1024, decoder_length=256)
    instruct.build(Build(tmp_path / "out", recipe, {**inputs, "tokenizer": tmp_path}))
    pairs = Pairs(tmp_path / "out", "heldout")
    assert pairs.source(0)[[0, -2, -1]].tolist() == [250201, 250199, 1]
    assert pairs.target(0)[[0, -1]].tolist() == [250199, 1]


def test_every_sample_is_there_or_counted(inputs, make):
    out, facts = make()
    for split in ("train", "heldout"):
        pairs = Pairs(out, split)
        tasks_of = [pairs.names[pairs.task(index)] for index in range(len(pairs))]
        for name in NAMES:
            kept, dropped = facts[split]["by_task"][name], facts[split]["over_long"][name]
            assert kept + dropped == len(rows(inputs, name, split))
            assert kept == tasks_of.count(name)
        assert facts[split]["samples"] == len(pairs)
        lengths = [len(pairs.source(index)) for index in range(len(pairs))]
        assert facts[split]["mean_source"] == pytest.approx(np.mean(lengths), abs=0.06)


def test_too_long_samples_are_dropped_or_cut(inputs, make):
    tokens = Tokenizer.load(inputs["tokenizer"])
    texts = [row["input"] for row in rows(inputs, "bbc-topic", "train")]
    lengths = sorted(len(tokens.encode(text)) + 3 for text in texts)
    limit = lengths[len(lengths) // 2]
    too_long = sum(length > limit for length in lengths)
    fields = {"names": {"bbc-topic": "en"}, "encoder_length": limit}
    dropped, facts = make("drop", **fields)
    assert facts["train"]["over_long"]["bbc-topic"] == too_long
    assert len(Pairs(dropped, "train")) == len(texts) - too_long
    cut, facts = make("cut", **fields, over_long="truncate")
    assert facts["train"]["over_long"]["bbc-topic"] == too_long
    pairs = Pairs(cut, "train")
    assert len(pairs) == len(texts)
    starts = {text[:25] for text in texts}
    for index in range(50):
        source = pairs.source(index)
        assert len(source) <= limit
        assert source[-2:].tolist() == [tokens.sentinel(0), tokens.eos]
        assert tokens.decode(source)[:25] in starts


def test_a_cut_target_does_not_end(inputs, make):
    out, _ = make(names={"chat-en": "en"}, decoder_length=8, over_long="truncate")
    pairs = Pairs(out, "train")
    tokens = Tokenizer.load(inputs["tokenizer"])
    targets = [pairs.target(index) for index in range(len(pairs))]
    assert max(map(len, targets)) == 8
    full = [target for target in targets if len(target) == 8]
    assert sum(target[-1] != tokens.eos for target in full) > len(full) // 2
    assert all(target[-1] == tokens.eos for target in targets if len(target) < 8)


@pytest.mark.parametrize("over_long", ["drop", "truncate"])
def test_long_conversations_lose_their_oldest_turns(inputs, make, over_long):
    out, facts = make(over_long, names={"chat-en": "en"}, encoder_length=40, over_long=over_long)
    tokens = Tokenizer.load(inputs["tokenizer"])
    pairs = Pairs(out, "train")
    texts = {tokens.decode(pairs.source(index)) for index in range(len(pairs))}
    shortened = 0
    for row in rows(inputs, "chat-en", "train"):
        if len(tokens.encode(row["input"])) + 3 > 40:
            endings = [row["input"][turn:] for turn in row["turns"]]
            fitting = [text for text in endings if len(tokens.encode(text)) + 3 <= 40]
            if fitting and len(row["target"]) < 40:
                assert fitting[0] in texts  # as many turns as fit, and the question is always among them
                shortened += 1
    assert shortened > 20
    assert facts["train"]["over_long"]["chat-en"] < 200


def test_encoding_a_question_is_what_training_saw(inputs, make):
    out, _ = make(names={"chat-en": "en"}, encoder_length=40)
    tokens = Tokenizer.load(inputs["tokenizer"])
    seen = {tuple(Pairs(out, "heldout").source(i).tolist()) for i in range(len(Pairs(out, "heldout")))}
    asked = {
        tuple(encode_input(tokens, r["input"], r["turns"], 40)) for r in rows(inputs, "chat-en", "heldout")
    }
    assert seen <= asked
    assert len(seen) > 50
    assert all(len(ids) <= 40 for ids in asked)
    assert len(encode_input(tokens, "word " * 500, (), 40)) == 40


def test_shares_are_met_and_as_large_as_they_can_be(make):
    _, everything = make("all")
    out, facts = make("mixed", shares={"en": 0.667, "zh": 0.333})
    for split in ("train", "heldout"):
        available, taken = everything[split]["by_group"], facts[split]["by_group"]
        assert taken["en"] / taken["zh"] == pytest.approx(0.667 / 0.333, rel=0.03)
        assert any(available[group] - taken[group] <= 1 for group in taken)  # the rarer group bounds the mix
        assert all(taken[group] <= available[group] for group in taken)
    first = [Pairs(out, "train").names[Pairs(out, "train").task(index)] for index in range(300)]
    assert (
        0.55 < sum(NAMES[name] == "en" for name in first) / 300 < 0.78
    )  # shuffled: the start has the shares, too


def test_order_follows_the_seed_and_nothing_else(make):
    one, _ = make("one", shares={"en": 0.5, "zh": 0.5})
    same, _ = make("same", shares={"en": 0.5, "zh": 0.5})
    other, _ = make("other", shares={"en": 0.5, "zh": 0.5}, seed=7)
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in same.iterdir())
    assert all((one / name).read_bytes() == (same / name).read_bytes() for name in files)
    assert (one / "train_source.npy").read_bytes() != (other / "train_source.npy").read_bytes()


def test_the_order_of_names_in_the_recipe_changes_no_byte(make):
    """A fingerprint sorts keys, so two orders are one step and must have one output."""
    reverse = dict(reversed(NAMES.items()))
    assert list(reverse) != sorted(reverse) or list(NAMES) != sorted(NAMES)
    first, first_facts = make("first", names=NAMES, shares={"en": 0.5, "zh": 0.5})
    second, second_facts = make("second", names=reverse, shares={"zh": 0.5, "en": 0.5})
    assert first_facts == second_facts
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_nothing_is_repeated(make):
    out, facts = make(shares={"en": 0.9, "zh": 0.1})
    pairs = Pairs(out, "train")
    samples = {(pairs.source(i).tobytes(), pairs.target(i).tobytes()) for i in range(len(pairs))}
    # A handful of different conversations end alike once their oldest turns are gone.
    assert len(pairs) - len(samples) < 20
    assert facts["train"]["shares"]["en"] == pytest.approx(0.9, abs=0.01)


def test_an_empty_held_out_part_can_be_read(inputs, tmp_path, make):
    folder = tmp_path / "identity"
    folder.mkdir()
    pq.write_table(
        pa.Table.from_pylist(rows(inputs, "chat-zh", "train"), labelled.SCHEMA), folder / "train.parquet"
    )
    pq.write_table(labelled.SCHEMA.empty_table(), folder / "heldout.parquet")
    (tmp_path / "out2").mkdir()
    recipe = InstructRecipe(tasks={"own": "zh"}, encoder_length=64, decoder_length=64)
    instruct.build(Build(tmp_path / "out2", recipe, {"tokenizer": inputs["tokenizer"], "task-own": folder}))
    assert len(Pairs(tmp_path / "out2", "heldout")) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": {"en": 1.0}}, "group zh has tasks but no share"),
        ({"shares": {"en": 0.5, "zh": 0.4, "fr": 0.1}}, "group fr has no train sample"),
        ({"encoder_length": 4}, "no sample fits encoder_length 4"),
    ],
)
def test_mistakes_are_told(make, fields, message):
    with pytest.raises(UserError, match=message):
        make(**fields)
