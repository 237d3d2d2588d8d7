"""Copy a bucket to a folder or back, deleting nothing: `buckets.py FROM TO CONDITION`.

CONDITION is `always`, or `size` to copy only what is new or has another size: right for outputs of steps,
which are never changed after they are written.
"""

import sys
from pathlib import Path

from fsspec.generic import GenericFileSystem, rsync

# Not `as_uri`, which quotes spaces: fsspec takes an address as it is.
addresses = [
    address if "://" in address else f"file://{Path(address).absolute()}" for address in sys.argv[1:3]
]
for address in addresses:
    if address.startswith("file://"):
        Path(address.removeprefix("file://")).mkdir(parents=True, exist_ok=True)
rsync(*addresses, fs=GenericFileSystem(default_method="current"), update_cond=sys.argv[3])
