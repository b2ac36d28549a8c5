"""Names that a file gives: do they stay in the folder that they are joined to?"""

import re


def is_file_name(name: str) -> bool:
    """Whether it names a file in that very folder: no separator, no way up, no drive of Windows."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


def is_below(name: str) -> bool:
    """Whether it names something in that folder or in one below it."""
    parts = re.split(r"[/\\]", name)
    return all(part not in ("", ".", "..") for part in parts) and not set(name) & set(":\0")
