"""The README for a package index, where links into the repository have to be absolute."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = r"\((?![a-z]+:|#)([^)]*)\)"
"""The address of a link to a file beside the README."""


class Readme(MetadataHookInterface):
    """Puts `on_an_index` of README.md into the package's metadata."""

    def update(self, metadata: dict) -> None:
        """Set the field ``readme``."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {"content-type": "text/markdown", "text": on_an_index(text, repository)}


def on_an_index(text: str, repository: str | None) -> str:
    """``text`` with absolute links into ``repository``; without one the links' words alone, and no pictures."""
    if repository:
        text = re.sub(rf"!(\[[^]]*\]){RELATIVE}", rf"!\1({repository}/raw/main/\2)", text)
        return re.sub(rf"(\[[^]]*\]){RELATIVE}", rf"\1({repository}/blob/main/\2)", text)
    text = re.sub(rf"!\[[^]]*\]{RELATIVE}\n+(\*[^*]+\*\n+)?", "", text)  # with its caption
    return re.sub(rf"\[([^]]*)\]{RELATIVE}", r"\1", text)
