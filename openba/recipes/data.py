"""Recipes of everything before training: sources, cleaning, tokenizer, mixture, tasks, BiFlan."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from openba.artifacts import Recipe
from openba.recipes.clean import CleanRecipe, ScoringModelRecipe
from openba.recipes.numbers import (
    Count,
    CountOrNone,
    Finite,
    NonNegative,
    PositiveTokens,
    Records,
    Repetitions,
    Seed,
    Share,
    Size,
    Version,
)

Language = Literal["zh", "en", "code"]
LANGUAGES: tuple[str, ...] = get_args(Language)
Encoding = Literal["utf-8", "gb18030", "big5", "utf-16", "auto"]


class _Source(Recipe):
    """Fields that every source has, whatever its adapter."""

    language: Language
    """The mixture's share it counts to: Chinese, English or code."""
    licence: str
    """Terms of the text, as the owner names them; shown in the report and the model card."""
    clean: bool | CleanRecipe = False
    """Filter it: true by the pipeline's `clean`, a name by that file of `configs/clean`. The paper filters
    its Chinese data only (section 3.1.1, footnote 2)."""


class ScoreRange(Recipe):
    """Range of a number that each record has, such as a classifier's score; records outside are not read.

    Two sources with the same files and other ranges are two buckets of quality; the mixture's `shares` and
    `epochs` weigh them.
    """

    field: str | None = None
    """Column or key, with dots for one inside another."""
    model: Annotated[ScoringModelRecipe | None, Field(exclude_if=lambda model: model is None)] = None
    """What gives the score, in place of a field."""
    min: Finite | None = None
    """Records below are left out."""
    below: Finite | None = None
    """Records with this and more are left out."""

    @model_validator(mode="after")
    def _one(self) -> ScoreRange:
        if (self.field is None) == (self.model is None):
            raise ValueError("give either field or model")
        return self


class PackageSource(_Source):
    """Real text that an installed Python package, or Python itself, brings."""

    adapter: Literal["package"]
    package: str
    """Distribution name, `python` for the standard library. Its version enters the fingerprint."""
    reader: str
    """Which reader of `openba.data.samples` understands the package's files."""
    limit: Records | None = None
    """Keep the first so many documents."""


class FileSource(_Source):
    """Local Parquet, JSON (lines, a list or an object), CSV, plain text, WARC, BIO tags or exams.

    Text files may be compressed: gz, bz2, xz, zst and lz4 are recognised by their first bytes.

    With `jsonl`, files whose name ends in `.parquet` are read as Parquet: data sets are published as either.

    `exam`: questions with options as MMLU, CMMLU and C-Eval publish them, CSV files, or as JSON lines.
    """

    adapter: Literal["parquet", "jsonl", "csv", "text", "warc", "bio", "exam"]
    path: str
    """A file, a folder or a glob; relative to the working directory (into `configs/`: or as shipped)."""
    text_field: str | None = "text"
    """Column or key that holds the document, with dots for one inside another (`meta.body`); none: records
    without one, such as conversations, for a task. Plain text: one document per file."""
    id_field: str | None = None
    """Column or key with a stable id; without it the id is `file:row`."""
    encoding: Encoding = "utf-8"
    """Of text, JSON, CSV, BIO and exam files; `auto` looks at each. What an encoding does not have becomes
    U+FFFD and is counted in the quarantine. WARC pages state their own."""
    extract: Literal["none", "article"] = "none"
    """`article`: the text is HTML, and trafilatura takes the article out of it; plain text of WARC stays."""
    score: ScoreRange | None = None
    limit: Records | None = None

    @model_serializer(mode="wrap")
    def _without_score(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent_score(serialize(self))


class HuggingFaceSource(_Source):
    """A data set of the Hugging Face hub, or a local folder in its layout."""

    adapter: Literal["huggingface"]
    path: str
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    """Commit of the data set; required for a hub data set, so that a fingerprint means one text."""
    text_field: str | None = "text"
    id_field: str | None = None
    score: ScoreRange | None = None
    limit: Records | None = None

    @model_serializer(mode="wrap")
    def _without_score(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_absent_score(serialize(self))


def _without_absent_score(fields: dict[str, Any]) -> dict[str, Any]:
    """Leave out an absent range: recipes are hashed as they are serialised, and most sources have none."""
    return {name: value for name, value in fields.items() if name != "score" or value is not None}


SourceRecipe = Annotated[PackageSource | FileSource | HuggingFaceSource, Field(discriminator="adapter")]


class SourceStep(Recipe):
    """A source with the name it has in the pipeline."""

    name: str
    source: SourceRecipe


class CorpusRecipe(Recipe):
    """Cleaning over all sources together, so that duplicates across sources are found."""

    sources: dict[str, CleanRecipe | None]
    """Source name -> its filters, or none: passed through."""


class TokenizerRecipe(Recipe):
    """A finished SentencePiece file, that of existing weights, or a unigram model to train on the corpus."""

    kind: Literal["file", "weights", "unigram"]
    """`weights`: of the first weights in the pipeline that exist already (`start: {weights: ...}`)."""
    path: str | None = None
    """`file`: the mT5 model, `mc4.250000.100extra`."""
    whitespace_tokens: bool = False
    """`file`: append tokens for newline, tab, runs of spaces and full-width forms and leave out the
    normalisation, so that every text comes back byte for byte. Off: the ids are the release's."""
    vocab_size: Size | None = None
    """`unigram`: number of pieces, byte pieces included, before the appended special tokens."""
    train_characters: Records = 2_000_000
    """`unigram`: at most so many characters are read, the sources' shares kept."""
    seed: Seed = 1234

    @model_validator(mode="after")
    def _complete(self) -> TokenizerRecipe:
        required_field = {"file": "path", "unigram": "vocab_size"}.get(self.kind)
        if required_field is not None and getattr(self, required_field) is None:
            raise ValueError(f"kind {self.kind!r} needs {required_field!r}")
        if self.kind == "weights" and self.whitespace_tokens:
            raise ValueError(
                "'whitespace_tokens' is for kind 'file'; the weights' tokenizer is taken as it is"
            )
        if self.kind == "unigram" and self.whitespace_tokens:
            raise ValueError("'whitespace_tokens' is for kind 'file'; a trained model has such pieces anyway")
        return self


NGRAM = 13
"""Units of an n-gram that records and training text are compared by: words, or Han characters. As GPT-3."""

HELDOUT = "heldout"
"""The part of a mixture that is only measured on; it chooses its documents first."""


class MixtureRecipe(Recipe):
    """The paper's mix (Figure 1(a)): 47.5 % English, 47.5 % Chinese, 5 % code, by tokens."""

    shares: dict[str, Share] = {"en": 0.475, "zh": 0.475, "code": 0.05}
    """Group -> share of the tokens. A group is a source, or all other sources of a language."""
    epochs: dict[str, Repetitions] = {}
    """Group -> how often at most its documents may stand in a stage if it is short of text; others: once."""
    parts: dict[str, PositiveTokens] = Field(min_length=1)
    """Part -> its corpus tokens. A stage reads one part; no document stands in two. Parts choose documents in
    the order of their names, so the order in the file changes nothing."""
    heldout: PositiveTokens
    """Tokens kept from all parts, to measure the loss on; never repeated."""
    drop_contaminated: bool = True
    """Leave out documents that hold a record of the base benchmarks; else they are only reported."""
    seed: Seed = 1234

    @model_validator(mode="after")
    def _whole(self) -> MixtureRecipe:
        # Decimal shares such as 0.475 have no exact binary form, so their sum is 1 to within a rounding.
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares add up to {sum(self.shares.values()):g}, not 1")
        if unknown := sorted(self.epochs.keys() - self.shares.keys()):
            raise ValueError(f"epochs: {', '.join(unknown)}: not in shares ({', '.join(self.shares)})")
        if HELDOUT in self.parts:
            raise ValueError(f"parts.{HELDOUT}: this name is taken; set mixture.{HELDOUT} instead")
        return self

    @property
    def tokens(self) -> dict[str, int]:
        """Part -> tokens of all groups, in the order in which parts choose documents."""
        # The held-out part first: it chooses before the others, so that no part has its documents.
        return {HELDOUT: self.heldout} | {part: self.parts[part] for part in sorted(self.parts)}

    def budgets(self) -> dict[str, dict[str, int]]:
        """Group -> part -> tokens."""
        return {
            group: {part: round(tokens * share) for part, tokens in self.tokens.items()}
            for group, share in self.shares.items()
        }


class ContaminationRecipe(Recipe):
    """Search of the training data for records of the evaluation sets (paper section 4.1, Table 4)."""

    sets: tuple[str, ...]
    """Tasks whose held-out records are evaluated on."""
    tasks: tuple[str, ...]
    """Tasks that are trained on; the documents of a mixture, if there is one, are looked at too."""
    ngram: Size = NGRAM


class Turn(Recipe):
    """Template that makes a pair of input and target from a record, in one of three forms.

    Few-shot with `shots`, chain of thought with `rationale`, else zero-shot.
    """

    input: str
    """Template of the encoder text, fields in braces; `{examples}` is where solved examples go."""
    target: str
    """Template of the decoder text."""
    shots: CountOrNone = 0
    """So many solved examples, drawn by the task's seed from records of the training part."""
    shots_from: Literal["drawn", "first"] = "drawn"
    """`drawn`: each record has its own examples, drawn by its id. `first`: all records of a category have the
    same ones in the same order, the category's first training records (the release, MMLU, CMMLU, C-Eval)."""
    example: str | None = None
    """Template of one solved example."""
    starts: str | None = None
    """A regular expression that finds, in the input, where each solved example and, last, the question
    begins: for data sets that bring their examples as text. If the encoder is too short the oldest go."""
    rationale: str | None = None
    """Field with the reasoning that the target spells out; the template serves records that have it."""

    @property
    def form(self) -> Literal["zero_shot", "few_shot", "cot"]:
        """Return the template's form."""
        return "cot" if self.rationale else "few_shot" if self.shots else "zero_shot"

    @model_validator(mode="after")
    def _examples(self) -> Turn:
        if not (self.shots > 0) == (self.example is not None) == ("{examples}" in self.input):
            raise ValueError("shots, example and {examples} in the input go together")
        if self.shots_from == "first" and not self.shots:
            raise ValueError("shots_from says which examples; it needs shots")
        if self.shots and self.starts:
            raise ValueError("examples are drawn (shots) or stand in the input (starts), not both")
        return self


class Options(Recipe):
    """A multiple choice: templates get `{options}`, and `{letter}` and `{option}` of the right one."""

    of: tuple[str, ...]
    """The field that holds the list, or one field for each option."""
    answer: str
    """The field with the right one: its position from 0, its letter or its text. A letter names its option
    even where another option's text is that letter."""


class Joined(Recipe):
    """A list of objects written out as text, such as the triples of a relation task."""

    field: str
    item: str
    """Template of one object, its keys in braces."""
    separator: str


class Marked(Recipe):
    """A text in which some words stand between asterisks, such as the pronoun that a question is about."""

    text: str
    """The field with the text."""
    words: str
    """Template of the words, such as `{target[span2_text]}`."""
    position: str
    """Template of the position at which they begin, counted from 0; the nearest place with them counts."""
    unit: Literal["word", "character"]
    """What the position counts; words are what white space separates."""


class Tagged(Recipe):
    """A sentence as a list of tokens; it becomes `text` and `entities`."""

    tokens: str
    """Field of the tokens; joined by spaces."""
    tags: str | None = None
    """Field of one BIO or IO tag a token, such as B-person."""
    spans: str | None = None
    """Field of [first token, last token, type] lists, the last included."""
    questions: str | None = None
    """Field of a conversation that asks for one type after another, as Pile-NER-type has it; a record with
    this field is read so, others by their tokens."""

    @model_validator(mode="after")
    def _one(self) -> Tagged:
        if (self.tags is None) == (self.spans is None):
            raise ValueError("give either tags or spans")
        return self


class Partition(Recipe):
    """A data set's own division; records of neither part are left out and counted."""

    by: str
    """Template of the part's name, such as `{split}`, or `{id.file}`: the file's name without its ending."""
    train: tuple[str, ...] = ()
    """Names of what is trained on and what examples are drawn from."""
    heldout: tuple[str, ...]
    """Names of what is evaluated on."""


class Dialogue(Recipe):
    """Turns of two speakers that alternate; the first is the human."""

    field: str
    """The list of turns."""
    text: str | None = None
    """Key of a turn's text; none: the turns are strings."""
    speakers: tuple[str, str] | None = None
    """Keys of the human's and the assistant's text, where one element of the list holds both."""

    @model_validator(mode="after")
    def _one(self) -> Dialogue:
        if self.text is not None and self.speakers is not None:
            raise ValueError("give either text or speakers")
        return self


class ProgramCheck(Recipe):
    """Check of an answer that is a program: it and the tests run in two sandboxes."""

    program: str
    """Template of the program, in which the answer stands at `{answer}`."""
    function: str
    """Template of the name of the function that the program defines, such as `{entry_point}`."""
    tests: str
    """Template of the tests; they call the function as `candidate` and raise if a result is wrong."""


class TaskRecipe(Recipe):
    """A labelled task: records of a source rendered through templates. Trains and evaluates alike."""

    version: Version = 1
    """To be raised when the task asks something else under the same name; part of its identity."""
    source: SourceRecipe
    group: Literal["zh", "en"] | None = None
    """Language group it counts to in a mix, where that is not its source's (translation: Chinese)."""
    part: str | None = None
    """Sub-mixture of its group it counts to, such as `dialogue` (paper Figure 1(b))."""
    each: tuple[str, ...] = ()
    """Path to a nested list: every element is a record with the fields of all that holds it. Elements
    of one record are held out together."""
    split: dict[str, str] = {}
    """Field -> separator at which its text becomes a list."""
    dialogue: Dialogue | None = None
    """The field that becomes `messages`."""
    options: Options | None = None
    joined: dict[str, Joined] = {}
    """New field -> the list it is written from."""
    marked: dict[str, Marked] = {}
    """New field -> the text and the words that are marked in it."""
    beside: dict[str, str] = {}
    """New field -> template of the text file that holds it, such as `data/prompts/{id.file}.txt`."""
    tagged: Tagged | None = None
    labels: Literal["task", "record"] = "task"
    """What `{labels}` lists: all entity types of the task, or those of the record (Pile-NER has 13,000)."""
    category: str | None = None
    """Template of the subject a record belongs to, such as `{subject}`; its examples are of the same one."""
    references: str | None = None
    """Field with all right answers, texts or objects with `text`; without it the target is the only one."""
    check: ProgramCheck | None = None
    """What tests an answer that is a program; in place of references."""
    templates: tuple[Turn, ...]
    """One is drawn per record, by the record's id."""
    conversation: bool = False
    """The record holds `messages`; every assistant turn becomes a pair whose `{history}` is all before it."""
    choices: tuple[str, ...] = ()
    """The possible targets, where the task is a choice."""
    wording: dict[str, dict[str, str | None]] = {}
    """Field -> its values in the records -> the words that stand for them, such as positive: 正面; null
    discards the record as unlabelled. Numbers and booleans as JSON writes them."""
    replace: dict[str, str] = {}
    """Text -> what stands for it in every text of a record, such as the name of the model, OpenBA: Kite, or
    nothing for control text, "<|endoftext|>": ""."""
    min_words: NonNegative = 0
    """Conversations of fewer words in all are dropped as overly simple (paper section 6.1). Greetings, thanks
    and the like do not count; a Han character counts as 0.6 words."""
    drop_identity: bool = False
    """Drop conversations in which the assistant says what model it is ("I am ChatGPT", section 6.1)."""
    model_names: tuple[str, ...] = ()
    """With `drop_identity`: models that wrote the answers; an answer that names one of them counts."""
    reject: str | None = None
    """A regular expression; a record with it in an assistant's turn, or in the target, is dropped whole."""
    repeat: Count = 1
    """How often the training part is repeated."""
    repeated_questions: Literal["keep", "first"] = "keep"
    """What becomes of pairs that ask what an earlier pair of the same part asks and answer otherwise: all
    stay, as in a set with several right answers to a question, or the first alone."""
    heldout: Share = 0.1
    """Share of records kept for evaluation, chosen by the hash of their id."""
    partition: Partition | None = None
    """Kept for evaluation is what the data set keeps, in place of `heldout`."""
    require: str | None = None
    """A regular expression to be found in the target; others are discarded and counted."""
    limit: Records | None = None
    """Use only so many records, chosen by the hash of their id."""
    broken: Literal["refuse", "count"] = "refuse"
    """A record that lacks a field or has an impossible answer ends the step, or is left out and named."""
    seed: Seed = 1234
    """Draws the examples of few-shot templates."""

    @property
    def is_test_set(self) -> bool:
        """Whether what is held out is a data set's own, to be scored whole, repetitions and all."""
        return self.partition is not None or self.heldout == 1

    @model_validator(mode="after")
    def _plain_conversation(self) -> TaskRecipe:
        if self.conversation and any(turn.form != "zero_shot" for turn in self.templates):
            raise ValueError("a conversation's templates take no shots and no rationale")
        return self

    def asks_the_same(self, other: TaskRecipe) -> bool:
        """Whether both ask, in some template, the same of records of the same source."""
        questions = [{turn.input for turn in recipe.templates} for recipe in (self, other)]
        return self.source == other.source and not questions[0].isdisjoint(questions[1])


class TaskStep(Recipe):
    """A task with the name it has in the pipeline."""

    name: str
    task: TaskRecipe


class InstructRecipe(Recipe):
    """A mix of tasks as token pairs: BiFlan for Stage III, the own data of an expert."""

    tasks: dict[str, str]
    """Task name -> language group it counts to."""
    shares: dict[str, Share] | None = None
    """Share of samples per language group (paper Figure 1(b): en 0.667, zh 0.333); none: all there is."""
    part_of: dict[str, str] = {}
    """Task name -> sub-mixture of its group."""
    parts: dict[str, dict[str, NonNegative]] = {}
    """Group -> sub-mixture -> weight in the group's samples; a group without: all tasks as they come."""
    encoder_length: Size
    decoder_length: Size
    over_long: Literal["drop", "truncate"] = "drop"
    """The paper drops samples that exceed the encoder (3.1.2); the release truncates the source."""
    seed: Seed = 1234
