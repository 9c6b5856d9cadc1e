"""Which column of the data is which part of an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import SteerError, unknown_name

# A part of an example, and the columns that are taken for it where nothing else is said.
PARTS = {"question": ("question",), "answer": ("answer", "answers"), "images": ("images", "image")}
_NAMES = {name: part for part, names in PARTS.items() for name in names}


@dataclass(frozen=True)
class Columns:
    """What the caller said about columns: key to their name, None where there is none."""

    renamed: Mapping[str, str | None]

    def __post_init__(self) -> None:
        for name in self.renamed:
            if name not in _NAMES:
                raise unknown_name("key of `columns`", name, _NAMES, "as in columns={'question': 'q'}")

    def find(self, names: Iterable[str], where: str) -> dict[str, str | None]:
        """The column of each part, among those that there are.

        Raises:
            SteerError: there is no question; or an answer or pictures are missing where some column is not known,
                which may be them under another name.
        """
        there = list(names)
        found = {part: self._find(part, there, where) for part in PARTS}
        missing = [part for part, name in found.items() if name is None and not self._has_none(part)]
        unknown = [name for name in there if name not in found.values() and name not in _NAMES]
        if "question" in missing or (missing and unknown):
            raise SteerError(
                f"{where} has no column for {' and '.join(missing)}; it has {', '.join(there) or 'none'}. "
                f"Needed are question, answer (or answers) and images (or image). {self._hint(missing, unknown)}"
            )
        return found

    def _find(self, part: str, there: list[str], where: str) -> str | None:
        for name in PARTS[part]:
            theirs = self.renamed.get(name)
            if theirs is not None:
                if theirs not in there:
                    raise unknown_name("column", theirs, there, f"{where} was to have it for {name}")
                return theirs
        if self._has_none(part):
            return None
        found = [name for name in PARTS[part] if name in there]
        if len(found) > 1:
            raise SteerError(f"{where} has both {' and '.join(found)}; say which is meant: columns={{{part!r}: ...}}")
        return found[0] if found else None

    def _has_none(self, part: str) -> bool:
        return any(name in self.renamed and self.renamed[name] is None for name in PARTS[part])

    def _hint(self, missing: list[str], unknown: list[str]) -> str:
        part, theirs = missing[0], (unknown or ["..."])[0]
        renamed = f"Another name: columns={{{part!r}: {theirs!r}}}"
        return renamed if part == "question" else f"{renamed}; none at all: columns={{{part!r}: None}}"
