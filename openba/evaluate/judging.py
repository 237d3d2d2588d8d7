"""Pairwise judging by people (paper section 4.4, Figure 4): a blind sheet, and what the filled sheets say.

Owns order, key and counts. The sheet shows two generations of one prompt in an order drawn by item; which
model wrote which stands in the key only. No judgement is ever made here.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
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

    Args:
        one: folder of an evaluation, as `openba eval` writes it.
        other: another model's.
        benchmark: whose generations are compared.
        out: folder to write to.
        items: so many of the items that both answered, drawn by the seed.
        seed: draws items and order.

    Raises:
        UserError: a folder lacks the benchmark, or they share no item.
    """
    found = [_texts(folder, benchmark) for folder in (one, other)]
    shared = [name for name in found[0] if name in found[1]]
    if not shared:
        raise UserError(f"{one} and {other}: no item of {benchmark} in both; evaluate both on the same data")
    drawn = sorted(shared, key=lambda name: xxhash.xxh3_64_intdigest(f"judge {seed} {name}".encode()))[:items]
    out.mkdir(parents=True, exist_ok=True)
    key: dict[str, list[str]] = {}
    with (out / SHEET).open("w", encoding="utf-8", newline="") as file:
        write = csv.writer(file)
        write.writerow(["item", "prompt", "text 1", "text 2", *ASPECTS])
        for number, name in enumerate(drawn, 1):
            turned = xxhash.xxh3_64_intdigest(f"order {seed} {name}".encode()) % 2
            sides = [(found[0][name], str(one)), (found[1][name], str(other))][:: -1 if turned else 1]
            key[str(number)] = [folder for _, folder in sides]
            write.writerow([number, sides[0][0]["input"], *(row["output"] for row, _ in sides), "", ""])
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


def _filled(sheet: Path, order: dict[str, list[str]]) -> dict[str, list[str]]:
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        rows = {row["item"]: row for row in csv.DictReader(file)}
    said: dict[str, list[str]] = {aspect: [] for aspect in ASPECTS}
    for item in order:
        for aspect in ASPECTS:
            value = (rows.get(item, {}).get(aspect) or "").strip().lower()
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
