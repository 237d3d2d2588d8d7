"""The modules that travel with an exported model, so that `trust_remote_code` loads it without openba.

They are the two entry modules and everything that these import from the package. In the exported folder all
of them lie side by side, so their file names differ; transformers follows relative imports only.
"""

from __future__ import annotations

import re
from pathlib import Path

ENTRY_MODULES = ("configuration_openba", "modeling_openba")
_PACKAGE_IMPORT = re.compile(r"^from openba\.((?:\w+\.)*)(\w+) import", re.MULTILINE)
_PACKAGE = Path(__file__).parent.parent


def exported_code() -> dict[str, str]:
    """Return the text of each module that an exported folder carries, by file name.

    Raises:
        ValueError: two modules have one file name.
    """
    module_paths: dict[str, Path] = {}
    texts: dict[str, str] = {}
    waiting = [Path("model", f"{name}.py") for name in ENTRY_MODULES]
    while waiting:
        path = waiting.pop()
        if module_paths.setdefault(path.name, path) != path:
            raise ValueError(f"{path}: {module_paths[path.name]} has the same file name; rename one of them")
        # Several modules import the same one.
        if path.name in texts:
            continue
        text = (_PACKAGE / path).read_text(encoding="utf-8")
        for folders, module in _PACKAGE_IMPORT.findall(text):
            waiting.append(Path(folders.replace(".", "/"), f"{module}.py"))
        texts[path.name] = _PACKAGE_IMPORT.sub(r"from .\2 import", text)
    return dict(sorted(texts.items()))
