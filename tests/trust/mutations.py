"""A valid file made wrong: bytes flipped, cut, moved; values of JSON swapped for others; safetensors' headers lying."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from typing import Any

from hypothesis import strategies as st

DEEP = "deep"
# What stands where something else was expected. Numbers that are too big for a machine, names that lead elsewhere,
# text that cannot be written as UTF-8, and every kind of JSON.
JUNK: list[Any] = [
    None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324,
    "", " ", "a", "0", "-1", "1e9", "nan", "None", "yes", "text", "\0", "\n", "\ud800", "é\u202e", "x" * 300,
    "x" * 70_000, "../../../etc/passwd", "/etc/passwd", "/dev/zero", "~", ".", "..", "__import__('os')", "%s%n", "{0}",
    "$(id)", "float32", "float8_e4m3fn", "torch.float32", "cuda", "os.system",
    [], [None], [1], ["a"], [[]], [[1, 2], [3]], [1] * 50, {}, {"a": 1}, {"": None}, {"0": []}, DEEP,
]  # fmt: skip
NUMBERS = st.integers(-3, 70_000) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
RAW = [b"", b"\0", b"\xff", b"\xff" * 8, b"\0" * 16, b'"', b"{", b"}", b"[", b",", b"9" * 40, b"-", b"1e999", b"NaN",
       b"\n", b"\r\n", b"\xef\xbb\xbf", b"\\ud800", b"\x80\x04.", b"PK\x03\x04", b"null", b"../"]  # fmt: skip


@st.composite
def changed_bytes(draw: Any, data: bytes) -> bytes:
    """The bytes with one to three changes."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(made)))
        kind = draw(st.sampled_from(["flip", "insert", "overwrite", "delete", "cut", "repeat"]))
        if kind == "flip" and at < len(made):
            made[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            made[at:at] = draw(st.sampled_from(RAW))
        elif kind == "overwrite":
            new = draw(st.sampled_from(RAW))
            made[at : at + len(new)] = new
        elif kind == "cut":
            del made[at:]
        else:
            end = min(len(made), at + draw(st.integers(1, 64)))
            made[at:end] = b"" if kind == "delete" else bytes(made[at:end]) * 2
    return bytes(made)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in JSON data: the way to it, the whole last."""
    found: list[tuple[Any, ...]] = []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        found += places(part, (*at, key))
    return [*found, at]


@st.composite
def changed_json(draw: Any, data: Any) -> Any:
    """JSON data with one or two values replaced, dropped, renamed, wrapped, or swapped with another of its values."""
    made = copy.deepcopy(data)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        ways = places(made)
        way = draw(st.sampled_from(ways))
        if not way:
            continue
        kind = draw(st.sampled_from(["replace", "replace", "replace", "number", "drop", "rename", "wrap", "swap"]))
        holder = _at(made, way[:-1])
        key = way[-1]
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(JUNK)))
        elif kind == "number":
            holder[key] = draw(
                st.integers(-3, 70_000) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
            )
        elif kind == "drop":
            del holder[key]
        elif kind == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"a": holder[key]}, [holder[key]] * 3]))
        elif kind == "swap":
            holder[key] = copy.deepcopy(_at(made, draw(st.sampled_from(ways))))
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x", "\0", "__class__", "0", "-1", "9" * 5, str(key) + " "]))] = (
                holder.pop(key)
            )
    return made


def _at(data: Any, way: tuple[Any, ...]) -> Any:
    for key in way:
        data = data[key]
    return data


def text(data: Any) -> bytes:
    """JSON data as a file; nesting that no parser goes down is written where `DEEP` stands."""
    written = json.dumps(data)
    return written.replace(json.dumps(DEEP), "[" * 30_000 + "]" * 30_000).encode()


def sealed(record: Any) -> bytes:
    """A record with its digest made right again, as someone would who means harm."""
    if not isinstance(record, dict):
        return text(record)
    body = {key: value for key, value in record.items() if key != "sha256"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return text({**body, "sha256": hashlib.sha256(canonical.encode()).hexdigest()})


def opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and what follows it."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def closed(header: Any, body: bytes) -> bytes:
    """The other way."""
    written = text(header)
    return struct.pack("<Q", len(written)) + written + body


@st.composite
def changed_tensors(draw: Any, data: bytes) -> bytes:
    """A safetensors file with another header, another body, other facts in its metadata, or other bytes."""
    kind = draw(st.sampled_from(["header", "facts", "facts", "body", "bytes"]))
    header, body = opened(data)
    facts = header.get("__metadata__", {})
    if kind == "bytes" or (kind == "facts" and not facts):
        return draw(changed_bytes(data))
    if kind == "header":
        return closed(draw(changed_json(header)), body)
    if kind == "body":
        return closed(header, draw(changed_bytes(body))[: len(body)].ljust(len(body), b"\0"))
    key = draw(st.sampled_from(sorted(facts)))
    facts[key] = text(draw(changed_json(json.loads(facts[key])))).decode()
    return closed(header, body)


def entries(data: bytes) -> dict[str, Any] | None:
    """What a record says of the tensors of a file, as the parser reads them; None where it reads none."""
    from safetensors.torch import load

    try:
        return {
            name: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")}
            for name, t in load(data).items()
        }
    except Exception:  # whatever the parser makes of it: then the record keeps what it said
        return None


def declared(data: bytes, before: dict[str, Any]) -> dict[str, Any]:
    """`tensors` of a record, telling the truth about another file."""
    listed = entries(data)
    return {
        **before,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "entries": before["entries"] if listed is None else listed,
    }
