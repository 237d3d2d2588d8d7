"""What `openba data why` shows: the text at each filter, the removal in brackets, private values masked."""

from __future__ import annotations

import pyarrow as pa
import pytest

from openba.data.clean.batch import Batch
from openba.data.clean.replay import CLOSE, OPEN, replay
from openba.data.clean.stages import stages_after_paragraph_dedup, stages_before_paragraph_dedup
from openba.data.schema import SCHEMA
from openba.recipes.clean import CleanRecipe

RUN = "今天天气非常好，我们一起去公园散步吧。"


def shown(text: str, recipe: CleanRecipe) -> tuple[list[str], list[dict[str, object]]]:
    """Run the filters that look at texts alone, and replay what they removed."""
    columns = {"id": ["1"], "text": [text], "language": ["zh"], "source": ["s"], "extra": ["{}"]}
    batch = Batch("s", pa.RecordBatch.from_pydict(columns, schema=SCHEMA))
    batch.run([*stages_before_paragraph_dedup(recipe), *stages_after_paragraph_dedup(recipe)])
    rows = [row for part in batch.removed for row in part.to_pylist()]
    return [" ".join(pieces) for pieces in replay(text, recipe, rows)], rows


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        (f"请打电话13812345678。{RUN}", [f"请打电话{OPEN}[phone]{CLOSE}。{RUN}"]),
        (f"<b>{RUN}</b>", [f"{OPEN}<b>{CLOSE}{RUN}</b>", f"<b>{RUN}{OPEN}</b>{CLOSE}"]),
        (f"<i>{RUN}a@b.com", [f"{OPEN}<i>{CLOSE}{RUN}[mail]", f"{RUN}{OPEN}[mail]{CLOSE}"]),
        (f"{RUN}好的。", [f"{RUN}{OPEN}好的。{CLOSE}"]),
    ],
)
def test_removals_are_marked_where_they_were(text: str, marked: list[str]) -> None:
    pieces, _ = shown(
        text, CleanRecipe(paragraph_dedup=False, document_dedup=False, languages=(), min_words=3)
    )
    assert [piece.replace("[email]", "[mail]") for piece in pieces] == marked


def test_nothing_private_is_shown() -> None:
    text = f"<p>电话138 1234 5678，邮箱ｗａｎｇ＠ｅｘａｍｐｌｅ．ｃｏｍ，</p>{RUN}138----1234----5678"
    pieces, _ = shown(text, CleanRecipe(paragraph_dedup=False, document_dedup=False, languages=()))
    assert pieces
    joined = "".join(pieces)
    assert "5678" not in joined
    assert "ｅｘａｍｐｌｅ" not in joined
