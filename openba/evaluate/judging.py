"""Pairwise judging by people (paper section 4.4, Figure 4): a blind sheet, and what the filled sheets say.

Owns order, key and counts. The sheet shows two generations of one prompt in an order drawn by item; which
model wrote which stands in the key only. No judgement is ever made here.
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
from typing import Any

import pyarrow.parquet as pq
import xxhash
from sklearn.metrics import cohen_kappa_score

from openba.errors import UserError

ASPECTS = ("coherence", "consistency")
"""What the paper's annotators compare: text with prompt, and text in itself."""
CHOICES = ("1", "2", "tie")
SHEET, KEY = "sheet.csv", "key.json"


def write_sheet(
    one: Path, other: Path, benchmark: str, out: Path, items: int = 100, seed: int = 1234
) -> Path:
    """Write `sheet.csv`, to be copied for each annotator, and `key.json`, to be kept from them.

    The sheet is UTF-8 with a byte order mark, without which Excel takes it for the system's code page. A cell
    that begins as a formula does gets an apostrophe, since spreadsheets run formulas of whoever wrote them.

    Args:
        one: folder of an evaluation, as `openba eval` writes it.
        other: another model's.
        benchmark: whose generations are compared.
        out: folder to write to.
        items: so many of the items that both answered, drawn by the seed.
        seed: draws items and order.

    Raises:
        UserError: a folder lacks the benchmark, they share no item, or the folder has a sheet already.
    """
    if existing := [path for path in (out / SHEET, out / KEY) if path.exists()]:
        raise UserError(
            f"{existing[0]}: is there already, perhaps filled in; it is not overwritten. Give another --out, "
            "or move it away"
        )
    found = [_texts(folder, benchmark) for folder in (one, other)]
    shared = [name for name in found[0] if name in found[1]]
    if not shared:
        raise UserError(f"{one} and {other}: no item of {benchmark} in both; evaluate both on the same data")
    drawn = sorted(shared, key=lambda name: xxhash.xxh3_64_intdigest(f"judge {seed} {name}".encode()))[:items]
    out.mkdir(parents=True, exist_ok=True)
    key: dict[str, list[str]] = {}
    with (out / SHEET).open("w", encoding="utf-8-sig", newline="") as file:
        write = csv.writer(file)
        write.writerow(["item", "prompt", "text 1", "text 2", *ASPECTS])
        for number, name in enumerate(drawn, 1):
            turned = xxhash.xxh3_64_intdigest(f"order {seed} {name}".encode()) % 2
            sides = [(found[0][name], str(one)), (found[1][name], str(other))][:: -1 if turned else 1]
            key[str(number)] = [folder for _, folder in sides]
            texts = [sides[0][0]["input"], *(row["output"] for row, _ in sides)]
            write.writerow([number, *map(_no_formula, texts), "", ""])
    (out / KEY).write_text(json.dumps({"one": str(one), "other": str(other), "order": key}), encoding="utf-8")
    return out / SHEET


def read_sheets(folder: Path, sheets: Sequence[Path]) -> dict[str, Any]:
    """What filled sheets say, by aspect: wins of each model and ties, and the annotators' agreement.

    Returns:
        Aspect -> `one`, `other`, `tie` (counts over all sheets), `agreement`, Cohen's kappa averaged over
        pairs of annotators (None with one annotator, or where all always said the same).

    Raises:
        UserError: the key is missing, or a field is empty or none of 1, 2, tie; names sheet and item.
    """
    path = folder / KEY
    if not path.is_file():
        raise UserError(f"{path}: no key; judge the sheet that `openba judge` wrote there")
    key = json.loads(path.read_text(encoding="utf-8"))
    filled = [_filled(sheet, key["order"]) for sheet in sheets]
    return {aspect: _counted([sheet[aspect] for sheet in filled], key) for aspect in ASPECTS}


def _texts(folder: Path, benchmark: str) -> dict[str, dict[str, Any]]:
    path = folder / f"{benchmark}.parquet"
    if not path.is_file():
        raise UserError(f"{path}: no answers; `openba eval MODEL {benchmark} --out {folder}` writes them")
    return {row["id"]: row for row in pq.read_table(path, columns=["id", "input", "output"]).to_pylist()}


def _no_formula(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _rows(sheet: Path) -> list[dict[str, str]]:
    """Rows of a sheet as a spreadsheet saves it: UTF-8, UTF-16 or GBK; commas, semicolons or tabs.

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
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    rows = list(csv.DictReader(StringIO(text, newline=""), delimiter=delimiter))
    columns = list(rows[0]) if rows else []
    if missing := [name for name in ("item", *ASPECTS) if name not in columns]:
        raise UserError(f"{sheet}: no column {missing[0]!r}; fill in a copy of the sheet and keep its head")
    return rows


def _filled(sheet: Path, order: dict[str, list[str]]) -> dict[str, list[str]]:
    rows = {(row["item"] or "").strip(): row for row in _rows(sheet)}
    said: dict[str, list[str]] = {aspect: [] for aspect in ASPECTS}
    for item in order:
        for aspect in ASPECTS:
            value = (rows.get(item, {}).get(aspect) or "").strip().lower()
            value = unicodedata.normalize("NFKC", value)  # Chinese input methods write １
            if value not in CHOICES:
                raise UserError(f"{sheet}: item {item}: {aspect} is {value!r}; write 1, 2 or tie")
            said[aspect].append(value)
    return said


def _counted(said: list[list[str]], key: dict[str, Any]) -> dict[str, Any]:
    named: list[list[str]] = []
    for sheet in said:
        pairs = zip(sheet, key["order"].values(), strict=True)
        named.append(["tie" if value == "tie" else sides[int(value) - 1] for value, sides in pairs])
    counts = Counter(name for sheet in named for name in sheet)
    kappas = [float(cohen_kappa_score(a, b)) for a, b in combinations(named, 2) if len({*a, *b}) > 1]
    return {
        "one": counts[key["one"]],
        "other": counts[key["other"]],
        "tie": counts["tie"],
        "agreement": round(fmean(kappas), 4) if kappas else None,
        "annotators": len(said),
        "items": len(key["order"]),
    }
