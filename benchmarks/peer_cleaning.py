"""Clean a source again and again in the tree of this checkout, for `benchmarks.quality_text`.

Usage: `python -m benchmarks.peer_cleaning SOURCE`, SOURCE a folder with documents.parquet. Each line on
standard input is one run; its CPU seconds are printed. An older checkout runs it too: it uses nothing new.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks import cleaning


def main() -> None:
    """Run the paper's filters once a line."""
    source = Path(sys.argv[1])
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="openba-cleaning-") as folder:
            started = time.process_time()
            cleaning.clean(source, cleaning.paper(), Path(folder) / "out")
            print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    main()
