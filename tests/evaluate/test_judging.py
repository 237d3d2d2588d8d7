"""Judging by people: a blind sheet, counts through the key, agreement, and fields that are not filled in."""

from __future__ import annotations

import codecs
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openba.errors import UserError
from openba.evaluate.judging import KEY_FILE, read_sheets, write_sheet


def evaluation(folder: Path, says: str) -> Path:
    folder.mkdir()
    rows = [{"id": str(i), "input": f"title {i}", "output": f"{says} {i}"} for i in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "roc.parquet")
    return folder


def filled(sheet: Path, to: Path, best: str, ties: int = 0) -> Path:
    """An annotator who prefers what begins with `best`, but for some ties."""
    rows = list(csv.DictReader(sheet.open(encoding="utf-8-sig", newline="")))
    for number, row in enumerate(rows):
        choice = "tie" if number < ties else "1" if row["text 1"].startswith(best) else "2"
        row |= {"coherence": choice, "consistency": "Tie"}
    with to.open("w", encoding="utf-8", newline="") as file:
        write = csv.DictWriter(file, list(rows[0]))
        write.writeheader()
        write.writerows(rows)
    return to


def test_the_sheet_is_blind_and_the_key_undoes_it(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "alpha"), evaluation(tmp_path / "b", "beta")
    sheet = write_sheet(one, other, "roc", tmp_path / "j", items=50)
    assert sheet.read_bytes().startswith(codecs.BOM_UTF8)
    text = sheet.read_text(encoding="utf-8-sig")
    assert str(one) not in text
    rows = list(csv.DictReader(text.splitlines()))
    first = [row["text 1"].partition(" ")[0] for row in rows]
    assert len(rows) == 50
    assert 12 < first.count("alpha") < 38  # the order is drawn
    again = write_sheet(one, other, "roc", tmp_path / "k", items=50).read_text(encoding="utf-8-sig")
    assert again == text
    sheets = [filled(sheet, tmp_path / "1.csv", "beta"), filled(sheet, tmp_path / "2.csv", "beta", ties=10)]
    said = read_sheets(tmp_path / "j", sheets)
    assert said["coherence"] | {"agreement": 0} == {
        "one": 0, "other": 90, "tie": 10, "agreement": 0, "annotators": 2, "items": 50,
    }  # fmt: skip
    assert said["coherence"]["agreement"] is not None
    assert said["consistency"]["tie"] == 100
    assert (
        said["consistency"]["agreement"] is None
    )  # nothing but ties: no agreement beyond chance to speak of


def test_agreement_is_kappa(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "alpha"), evaluation(tmp_path / "b", "beta")
    sheet = write_sheet(one, other, "roc", tmp_path / "j")
    key = json.loads((tmp_path / "j" / KEY_FILE).read_text(encoding="utf-8"))
    assert len(key["order"]) == 60
    same = [filled(sheet, tmp_path / f"{i}.csv", "beta", ties=20) for i in range(2)]
    assert read_sheets(tmp_path / "j", same)["coherence"]["agreement"] == 1
    against = [filled(sheet, tmp_path / "3.csv", "alpha"), filled(sheet, tmp_path / "4.csv", "beta")]
    assert read_sheets(tmp_path / "j", against)["coherence"]["agreement"] <= 0


def test_an_empty_field_and_a_missing_benchmark_are_named(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "alpha"), evaluation(tmp_path / "b", "beta")
    sheet = write_sheet(one, other, "roc", tmp_path / "j")
    with pytest.raises(UserError, match=r"sheet.csv: item 1: coherence is ''; write 1, 2 or tie"):
        read_sheets(tmp_path / "j", [sheet])
    with pytest.raises(UserError, match="no answers; `openba eval MODEL clts"):
        write_sheet(one, other, "clts", tmp_path / "x")
    with pytest.raises(UserError, match="no key"):
        read_sheets(tmp_path / "a", [sheet])


@pytest.mark.parametrize(
    ("encoding", "delimiter"),
    [("gbk", ";"), ("gb18030", ","), ("utf-8-sig", ";"), ("utf-16", "\t"), ("utf-8", ",")],
)
def test_a_sheet_that_a_spreadsheet_saved_is_read(encoding: str, delimiter: str, tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "甲；好"), evaluation(tmp_path / "b", "乙,好")
    sheet = write_sheet(one, other, "roc", tmp_path / "j", items=10)
    rows = list(csv.DictReader(sheet.open(encoding="utf-8-sig", newline="")))
    with (tmp_path / "filled.csv").open("w", encoding=encoding, newline="") as file:
        write = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        write.writeheader()
        write.writerows([{**row, "coherence": "１", "consistency": "tie "} for row in rows])
    said = read_sheets(tmp_path / "j", [tmp_path / "filled.csv"])
    assert said["coherence"]["one"] + said["coherence"]["other"] == 10
    assert said["consistency"]["tie"] == 10


def test_a_sheet_is_never_overwritten(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "alpha"), evaluation(tmp_path / "b", "beta")
    sheet = write_sheet(one, other, "roc", tmp_path / "j")
    filled(sheet, sheet, "beta")
    before = sheet.read_bytes()
    with pytest.raises(UserError, match="is there already, perhaps filled in"):
        write_sheet(one, other, "roc", tmp_path / "j")
    assert sheet.read_bytes() == before
    sheet.unlink()
    with pytest.raises(UserError, match=r"key\.json: is there already"):
        write_sheet(one, other, "roc", tmp_path / "j")


def test_an_answer_is_no_formula_and_a_broken_sheet_is_named(tmp_path: Path) -> None:
    one, other = evaluation(tmp_path / "a", "=HYPERLINK(1)"), evaluation(tmp_path / "b", "@x")
    sheet = write_sheet(one, other, "roc", tmp_path / "j")
    for row in csv.DictReader(sheet.open(encoding="utf-8-sig", newline="")):
        assert row["text 1"][0] == row["text 2"][0] == "'"
    (tmp_path / "other.csv").write_text("number,coherence\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column 'item'"):
        read_sheets(tmp_path / "j", [tmp_path / "other.csv"])
    with pytest.raises(UserError, match="No such file"):
        read_sheets(tmp_path / "j", [tmp_path / "missing.csv"])
