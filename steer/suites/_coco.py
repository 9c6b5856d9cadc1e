"""COCO's annotations: which objects are in which picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, SteerError, unknown_name
from ._files import json_document, json_lines
from ._objects import Objects

# Of the keys of an entry that are no text.
KINDS: dict[str, Any] = {"id": int | str, "image_id": int | str, "category_id": int | str}


@dataclass
class Annotations:
    """What files of annotations say.

    Attributes:
        files: by a picture's id the name of its file.
        objects: by a picture's id the names of the objects in it.
    """

    files: dict[int, str] = field(default_factory=dict)
    objects: dict[int, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Given:
    """The files that a user gave, by what they are.

    Attributes:
        synonyms: the table.
        instances: files of boxes or masks.
        captions: files of reference captions.
        images: a list of pictures, or None.
    """

    synonyms: Path
    instances: list[tuple[Path, Any]]
    captions: list[tuple[Path, Any]]
    images: Path | None


def sort(files: Sequence[str | Path]) -> Given:
    """Tell the files apart, by their endings and what is in them.

    Raises:
        SteerError: the table or the instances are missing, or there are two tables or lists.
        FileFormatError: a file is none of these.
    """
    paths = [Path(file) for file in files]
    tables = [path for path in paths if path.suffix == ".txt"]
    lists = [path for path in paths if path.suffix == ".jsonl"]
    documents = [(path, json_document(path)) for path in paths if path not in (*tables, *lists)]
    instances: list[tuple[Path, Any]] = []
    captions: list[tuple[Path, Any]] = []
    for path, document in documents:
        _check(document, path)
        (instances if "categories" in document else captions).append((path, document))
    counts = {"instances": len(instances), "captions": len(captions), ".txt": len(tables), ".jsonl": len(lists)}
    if len(tables) != 1 or not instances or not captions or len(lists) > 1:
        raise SteerError(
            "CHAIR reads instances_val2014.json, captions_val2014.json, one synonyms.txt and, where not all pictures "
            f"are meant, one pictures.jsonl; got {', '.join(f'{count} {kind}' for kind, count in counts.items())}"
        )
    return Given(tables[0], instances, captions, lists[0] if lists else None)


def read_annotations(given: Given, table: Objects) -> Annotations:
    """Objects of the pictures: those annotated, and those that their reference captions mention, as in CHAIR.

    Raises:
        FileFormatError: an entry without its keys, or a category that the table of synonyms does not have.
    """
    found = Annotations()
    for path, document in (*given.instances, *given.captions):
        for image in _entries(document, "images", ("id", "file_name"), path):
            found.files[image["id"]] = image["file_name"]
            found.objects.setdefault(image["id"], set())
    for path, document in given.instances:
        names = {}
        for category in _entries(document, "categories", ("id", "name"), path):
            if category["name"] not in table.names:
                raise FileFormatError(f"{path}: {unknown_name('object', category['name'], table.names)}")
            names[category["id"]] = table.names[category["name"]]
        for one in _entries(document, "annotations", ("image_id", "category_id"), path):
            if one["category_id"] not in names or one["image_id"] not in found.objects:
                raise FileFormatError(f"{path}: an annotation is of a category or a picture that is not in the file")
            found.objects[one["image_id"]].add(names[one["category_id"]])
    for path, document in given.captions:
        for one in _entries(document, "annotations", ("image_id", "caption"), path):
            if one["image_id"] not in found.objects:
                raise FileFormatError(f"{path}: a caption is of the picture {one['image_id']!r}, which is in no file")
            found.objects[one["image_id"]].update(table.mentioned(one["caption"]))
    return found


def chosen(given: Given, known: Annotations, limit: int | None) -> list[int]:
    """The ids of the pictures that are meant: those of the list, or all in the files' order.

    Raises:
        FileFormatError: a line of the list is no picture of the files.
    """
    if given.images is None:
        return list(known.files)[:limit]
    by_name = {name: key for key, name in known.files.items()}
    found = []
    for row, where in json_lines(given.images, limit):
        asked = row.get("image_id", row.get("image")) if isinstance(row, Mapping) else None
        known_id = isinstance(asked, int | str) and asked in known.files
        key = asked if known_id else by_name.get(asked) if isinstance(asked, str) else None
        if key is None:
            raise FileFormatError(
                f"{where}: no picture of the annotations; a line is {{'image_id': ...}} or {{'image': file}}"
            )
        found.append(key)
    return found


def _check(document: Any, path: Path) -> None:
    if not isinstance(document, Mapping) or not {"images", "annotations"} <= document.keys():
        has = ", ".join(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
        raise FileFormatError(
            f"{path} is no file of COCO's annotations: it needs images and annotations, and has {has}"
        )


def _entries(document: Mapping[str, Any], name: str, keys: tuple[str, ...], path: Path) -> list[Mapping[str, Any]]:
    entries = document[name]
    if not isinstance(entries, list):
        raise FileFormatError(f"{path}: {name} is no list")
    for place, one in enumerate(entries):
        if not isinstance(one, Mapping) or any(not isinstance(one.get(key), KINDS.get(key, str)) for key in keys):
            raise FileFormatError(f"{path}: {name}[{place}] needs the keys {', '.join(keys)}: ids, and words")
    return entries
