"""The modules that travel with an exported model, so that `trust_remote_code` loads it without openba.

They are the two entry modules and everything that these import from the package. In the exported folder all
of them lie side by side; transformers follows relative imports only.
"""

from __future__ import annotations

import re
from pathlib import Path

ENTRY_MODULES = ("configuration_openba", "modeling_openba")
_PACKAGE_IMPORT = re.compile(r"^from (?:openba\.\w+)?\.(\w+) import", re.MULTILINE)
_PACKAGE = Path(__file__).parent.parent


def exported_code() -> dict[str, str]:
    """Return the text of each module that an exported folder carries, by file name."""
    texts: dict[str, str] = {}
    waiting = [f"openba.model.{name}" for name in ENTRY_MODULES]
    while waiting:
        module = waiting.pop()
        file_name = f"{module.rpartition('.')[2]}.py"
        if file_name in texts:
            continue
        text = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
        for statement in _PACKAGE_IMPORT.finditer(text):
            imported = statement.group().split()[1]
            waiting.append(f"openba.model{imported}" if imported.startswith(".") else imported)
        texts[file_name] = _PACKAGE_IMPORT.sub(r"from .\1 import", text)
    return dict(sorted(texts.items()))
