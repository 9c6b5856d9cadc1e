"""Files in the published formats, about the pictures that ship with the package."""

from __future__ import annotations

import json
from pathlib import Path

import steer


def pope_files(folder: Path, n: int = 6, names: tuple[str, ...] = ("pope_random", "pope_popular")) -> list[Path]:
    """Two questions about each of n pictures, an object that is there and one that is not, in each of the files."""
    (folder / "images").mkdir(exist_ok=True)
    pictures = steer.zoo.pictures("test")
    found = []
    for shift, name in enumerate(names, 1):
        rows = []
        for i, (image, labels) in enumerate(pictures[:n]):
            file = f"COCO_val2014_{i:012}.png"
            image.save(folder / "images" / file)
            other = next(y["object"] for _, y in pictures[i + shift :] if y["object"] != labels["object"])
            for word, label in ((labels["object"], "yes"), (other, "no")):
                text = f"is there a {word}?"
                rows.append({"question_id": len(rows) + 1, "image": file, "text": text, "label": label})
        found.append(folder / f"{name}.json")
        found[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


SYNONYMS = """\
person, girl, boy, man, woman
dog, puppy
cat, kitten
hot dog
bear, teddy bear
dining table, table, desk
wine glass, glass
tie, bowtie
knife
chair, seat, stool
toilet
train, locomotive
bus
scissors, scissor
"""


def chair_files(folder: Path) -> list[Path]:
    """Three pictures with their objects and reference captions, and a table of synonyms."""
    images = [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(3)]
    categories = [{"id": 1, "name": "dog"}, {"id": 7, "name": "cat"}, {"id": 9, "name": "dining table"}]
    boxes = [(10, 1), (10, 1), (10, 9), (11, 7), (12, 9)]
    instances = [{"id": i, "image_id": image, "category_id": kind} for i, (image, kind) in enumerate(boxes)]
    said = [(10, "A man and his puppies."), (11, "Two kittens on a stool"), (12, "Nothing on it.")]
    captions = [{"id": i, "image_id": image, "caption": caption} for i, (image, caption) in enumerate(said)]
    (folder / "images").mkdir(exist_ok=True)
    for i, (image, _) in enumerate(steer.zoo.pictures("test")[:3]):
        image.save(folder / "images" / f"{i}.png")
    documents = {
        "instances_val2014.json": {"images": images, "annotations": instances, "categories": categories},
        "captions_val2014.json": {"images": images, "annotations": captions},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document))
    (folder / "synonyms.txt").write_text(SYNONYMS)
    return [folder / name for name in (*documents, "synonyms.txt")]
