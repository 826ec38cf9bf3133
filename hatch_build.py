"""Gives the package index a README whose links lead to the repository.

Relative links and pictures work in the repository, but not on the index. The environment variable
`REPOSITORY_URL`, which CI sets, is the repository's address; without it, the README stays as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ReadmeHook(MetadataHookInterface):
    """Sets `readme` of the project's metadata."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set it to README.md with absolute links to the files of this version."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        if url := os.environ.get("REPOSITORY_URL"):
            text = absolute(text, url.rstrip("/"), f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def absolute(text: str, url: str, tag: str) -> str:
    """Return Markdown with links to files of the repository instead of relative ones."""
    parts = re.split(r"(```.*?```)", text, flags=re.DOTALL)
    for i in range(0, len(parts), 2):  # between programs
        parts[i] = re.sub(r"\]\((?!\w+:|#)", f"]({url}/blob/{tag}/", parts[i])
        parts[i] = re.sub(r'\b(src|srcset)="(?!\w+:)', rf'\1="{url}/raw/{tag}/', parts[i])
    return "".join(parts)
