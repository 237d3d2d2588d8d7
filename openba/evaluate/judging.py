"""Pairwise judging by people (paper section 4.4, Figure 4): a blind sheet, and counts of the filled sheets.

Owns order, key and counts. The sheet shows two generations of one prompt in an order drawn per item; which
model wrote which is in the key only. Nothing here judges by itself.
"""

from __future__ import annotations

import codecs
import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from io import StringIO
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TypedDict

import pyarrow.parquet as pq
import xxhash
from sklearn.metrics import cohen_kappa_score

from openba.errors import UserError

ASPECTS = ("coherence", "consistency")
"""Aspects that the paper's annotators compare: text with prompt, and text in itself."""
VERDICTS = ("1", "2", "tie")
SHEET_FILE = "sheet.csv"
KEY_FILE = "key.json"


class Generation(TypedDict):
    """Columns read of an evaluation's `BENCHMARK.parquet`."""

    id: str
    input: str
    output: str


class SheetKey(TypedDict):
    """Contents of `key.json`."""

    one: str
    other: str
    order: dict[str, list[str]]
    """Item of the sheet -> folders of the models that wrote text 1 and text 2."""


class AspectCounts(TypedDict):
    """Counts over all sheets by one aspect."""

    one: int
    other: int
    tie: int
    agreement: float | None
    """Cohen's kappa averaged over pairs of annotators; None with one annotator, or where all always gave the
    same verdict."""
    annotators: int
    items: int


def write_sheet(
    first_folder: Path,
    second_folder: Path,
    benchmark: str,
    out_folder: Path,
    items: int = 100,
    seed: int = 1234,
) -> Path:
    """Write `sheet.csv`, to be copied for each annotator, and `key.json`, to be kept from them.

    The sheet is UTF-8 with a byte order mark, without which Excel takes it for the system's code page. A cell
    that begins like a formula gets an apostrophe, since spreadsheets run formulas whoever wrote them.

    Args:
        first_folder: folder of an evaluation, as `openba eval` writes it.
        second_folder: another model's.
        benchmark: name of the benchmark whose generations are compared.
        out_folder: folder to write to.
        items: number of items to draw from those that both answered.
        seed: draws items and order.

    Raises:
        UserError: a folder lacks the benchmark, they share no item, or `out_folder` has a sheet already.
    """
    if existing := [path for path in (out_folder / SHEET_FILE, out_folder / KEY_FILE) if path.exists()]:
        raise UserError(
            f"{existing[0]}: is there already, perhaps filled in; it is not overwritten. Give another --out, "
            "or move it away"
        )
    first_generations = _read_generations(first_folder, benchmark)
    other_generations = _read_generations(second_folder, benchmark)
    shared_ids = [item_id for item_id in first_generations if item_id in other_generations]
    if not shared_ids:
        raise UserError(
            f"{first_folder} and {second_folder}: no common item of {benchmark}; use one data set for both"
        )
    drawn_ids = sorted(shared_ids, key=lambda item_id: _hash(f"judge {seed} {item_id}"))[:items]
    out_folder.mkdir(parents=True, exist_ok=True)
    order: dict[str, list[str]] = {}
    with (out_folder / SHEET_FILE).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "prompt", "text 1", "text 2", *ASPECTS])
        for number, item_id in enumerate(drawn_ids, 1):
            sides = [
                (first_generations[item_id], str(first_folder)),
                (other_generations[item_id], str(second_folder)),
            ]
            # By hash rather than a generator, so that an item's order does not depend on the other items.
            if _hash(f"order {seed} {item_id}") % 2:
                sides.reverse()
            order[str(number)] = [folder for _, folder in sides]
            texts = [sides[0][0]["input"], *(generation["output"] for generation, _ in sides)]
            writer.writerow([number, *map(_escape_formula, texts), "", ""])
    sheet_key: SheetKey = {"one": str(first_folder), "other": str(second_folder), "order": order}
    (out_folder / KEY_FILE).write_text(json.dumps(sheet_key), encoding="utf-8")
    return out_folder / SHEET_FILE


def read_sheets(folder: Path, sheets: Sequence[Path]) -> dict[str, AspectCounts]:
    """Return, by aspect, wins of each model and ties in filled sheets, and the annotators' agreement.

    Raises:
        UserError: the key is missing, or a field is empty or none of 1, 2, tie; names sheet and item.
    """
    path = folder / KEY_FILE
    if not path.is_file():
        raise UserError(f"{path}: no key; judge the sheet that `openba judge` wrote there")
    sheet_key: SheetKey = json.loads(path.read_text(encoding="utf-8"))
    filled_sheets = [_read_verdicts(sheet, sheet_key) for sheet in sheets]
    return {
        aspect: _count_verdicts([verdicts[aspect] for verdicts in filled_sheets], sheet_key)
        for aspect in ASPECTS
    }


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _read_generations(folder: Path, benchmark: str) -> dict[str, Generation]:
    """Return the generations of an evaluation by item id."""
    path = folder / f"{benchmark}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no answers; `openba eval MODEL {benchmark} --out {folder}` writes them")
    rows = pq.read_table(path, columns=["id", "input", "output"]).to_pylist()
    return {row["id"]: row for row in rows}


def _escape_formula(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _read_rows(sheet: Path) -> list[dict[str, str]]:
    """Return the rows of a sheet as a spreadsheet saves it: UTF-8, UTF-16 or GBK; commas, semicolons or tabs.

    Raises:
        UserError: it is missing, in no such encoding, or lacks a column.
    """
    try:
        content = sheet.read_bytes()
    except OSError as error:
        raise UserError(f"{sheet}: {error.strerror}; give the filled sheet") from None
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "gb18030"):
        with suppress(UnicodeDecodeError):
            text = content.decode(encoding)
            break
    else:
        raise UserError(f"{sheet}: neither UTF-8 nor GBK; save it as CSV (UTF-8) and try again")
    # Excel writes semicolons where the decimal separator is a comma, and tabs for "Unicode text".
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=delimiter))
    columns = list(rows[0]) if rows else []
    if missing := [name for name in ("item", *ASPECTS) if name not in columns]:
        raise UserError(f"{sheet}: no column {missing[0]!r}; fill in a copy of the sheet and keep its head")
    return rows


def _read_verdicts(sheet: Path, sheet_key: SheetKey) -> dict[str, list[str]]:
    """Return the verdicts of a sheet by aspect, in the order of the key's items."""
    # Annotators may sort the sheet, so rows are found by their number.
    rows_by_item = {(row["item"] or "").strip(): row for row in _read_rows(sheet)}
    verdicts: dict[str, list[str]] = {aspect: [] for aspect in ASPECTS}
    for item in sheet_key["order"]:
        for aspect in ASPECTS:
            verdict = (rows_by_item.get(item, {}).get(aspect) or "").strip().lower()
            verdict = unicodedata.normalize("NFKC", verdict)  # Chinese input methods write １
            if verdict not in VERDICTS:
                raise UserError(f"{sheet}: item {item}: {aspect} is {verdict!r}; write 1, 2 or tie")
            verdicts[aspect].append(verdict)
    return verdicts


def _count_verdicts(sheet_verdicts: list[list[str]], sheet_key: SheetKey) -> AspectCounts:
    """Count the verdicts of all annotators on one aspect."""
    # Positions differ by item, so verdicts are replaced by the folder of the model that wins.
    winners: list[list[str]] = []
    for verdicts in sheet_verdicts:
        # Verdict "1" is text 1 of the sheet, which `order` maps to its model.
        item_orders = zip(verdicts, sheet_key["order"].values(), strict=True)
        winners.append(
            ["tie" if verdict == "tie" else folders[int(verdict) - 1] for verdict, folders in item_orders]
        )
    counts = Counter(winner for sheet_winners in winners for winner in sheet_winners)
    # Kappa is undefined if both annotators gave one and the same verdict throughout.
    kappas = [
        float(cohen_kappa_score(first_winners, second_winners))
        for first_winners, second_winners in combinations(winners, 2)
        if len({*first_winners, *second_winners}) > 1
    ]
    return {
        "one": counts[sheet_key["one"]],
        "other": counts[sheet_key["other"]],
        "tie": counts["tie"],
        "agreement": round(fmean(kappas), 4) if kappas else None,
        "annotators": len(sheet_verdicts),
        "items": len(sheet_key["order"]),
    }
