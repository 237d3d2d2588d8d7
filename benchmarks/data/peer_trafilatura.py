"""Article text by trafilatura's fast mode, run by its own interpreter for `benchmarks.data.cleaning_quality`.

Usage: `python peer_trafilatura.py PAGES`, a JSON line a page with `html`; prints a JSON list of texts. The
environment needs trafilatura 2.x. Imports nothing of openba.
"""

import json
import sys
from pathlib import Path

from trafilatura import extract

pages = [json.loads(line)["html"] for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
print(json.dumps([extract(page, fast=True, include_comments=False) or "" for page in pages]))
