"""Clean a source repeatedly with the code on PYTHONPATH, for `benchmarks.quality.text`.

Usage: `python peer_cleaning.py MODULE SOURCE`. MODULE is `benchmarks.data.cleaning`, or its name in an older
checkout; SOURCE is a folder with documents.parquet. Each line on standard input starts one run, whose CPU
seconds are printed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Run the paper's filters once for each line of standard input."""
    cleaning = import_module(sys.argv[1])
    source_folder = Path(sys.argv[2])
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="openba-cleaning-") as folder:
            started = time.process_time()
            cleaning.clean(source_folder, cleaning.paper(), Path(folder) / "out")
            print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    main()
