"""Ways to damage files, each a function of bytes and a random generator: the same generator damages the same way.

A file is taken apart as far as its format goes (JSON values, a header and its data, the keys and the tensor table of
GGUF), a part is removed, doubled, moved or replaced by a number or text at the edge of what is allowed, and the file is
put together again with the lengths that belong to it, mostly. Bits flip and ends are cut off besides.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

NUMBERS: tuple[int, ...] = (0, 1, -1, 2, 3, 7, 63, 64, 255, 256, 2**15, 2**16, 2**20, 2**24, 2**31 - 1, 2**31, 2**32)
NUMBERS += (2**48, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 10**400, -(2**63), -(2**31))
VALUES: tuple[Any, ...] = (None, True, False, "", "x", "silu", "llama3", "t2-r16c64", "t1.6-r16c64", "q4", "q6", "F32")
VALUES += (
    1e-300,
    1e300,
    0.5,
    -0.0,
    [],
    {},
    [0],
    {"a": 1},
    "\0",
    "../x",
    "/etc/passwd",
    "\x1b[2J",
    "x" * 5000,
    "\u202e",
)
# Texts that stand where a value stood; what only some readers take, and what exhausts a stack.
TEXTS = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e-999", b"00", b"1.", b"+1", b'"\\ud800"', b'"\\udc00x"')
TEXTS += (b'"\\u0000"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf8\x88\x80\x80\x80"', b"9" * 4300, b"9" * 4400, b"0x10")
TEXTS += (b"[" * 60 + b"]" * 60, b"[" * 70 + b"]" * 70, b"[" * 940 + b"]" * 940, b"[" * 100_000, b'{"a":' * 30_000)
TEXTS += (b'{"a":1,"a":2}', b"//", b"'x'", b"{,}", b"[,]", b"\xef\xbb\xbf", b"True", b'"\x01"', b'"\x7f"')

Mutation = Callable[[bytes, Random], bytes]


def mutate_value(value: Any, rng: Random) -> Any:
    """Return a copy of a JSON value with one part replaced, removed, doubled or moved."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        out = dict(value)
        action = rng.random()
        if action < 0.1:
            del out[key]
        elif action < 0.15:
            out[key + "x"] = out[key]
        elif action < 0.2:
            out[rng.choice(list(value))] = out[key]
        else:
            out[key] = mutate_value(value[key], rng)
        return out
    if isinstance(value, list) and value and rng.random() < 0.8:
        out_list = list(value)
        at = rng.randrange(len(out_list))
        action = rng.random()
        if action < 0.15:
            del out_list[at]
        elif action < 0.3:
            out_list.insert(at, out_list[at])
        else:
            out_list[at] = mutate_value(out_list[at], rng)
        return out_list
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**2000 and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, value * 2, -value, value + 64, value << 32, value | 1 << 63))
    return rng.choice(NUMBERS) if rng.random() < 0.6 else rng.choice(VALUES)


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Return damaged JSON: as a value, as a text in which a value becomes something odd, or as bytes."""
    action = rng.random()
    if action < 0.25:
        return mutate_bytes(data, rng, len(data))
    value = _parsed(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = mutate_value(value, rng)
    if action < 0.85:
        return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    text = json.dumps(value).encode()
    at = rng.randrange(len(text))
    colon = text.find(b": ", at)
    end = min((place for mark in (b",", b"}", b"]") if (place := text.find(mark, colon)) > 0), default=len(text))
    return text[: colon + 2] + rng.choice(TEXTS) + text[end:] if colon > 0 else text[:at] + rng.choice(TEXTS)


@lru_cache(maxsize=256)
def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):  # a damaged case that became a seed
        return {}


def mutate_bytes(data: bytes, rng: Random, region: int) -> bytes:
    """Return bytes with some of the first ``region`` of them flipped, removed, inserted, doubled or cut off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not out:
            break
        at = rng.randrange(max(1, min(region, len(out))))
        action = rng.random()
        if action < 0.45:
            out[at] ^= 1 << rng.randrange(8)
        elif action < 0.6:
            out[at] = rng.choice((0, 255, 0x7F, 0x80, ord('"'), ord("["), ord("{"), ord("9")))
        elif action < 0.7:
            del out[at : at + rng.choice((1, 8, 64))]
        elif action < 0.8:
            out[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
        elif action < 0.86:
            out[at:at] = out[at : at + rng.choice((1, 8, 64, 4096))]
        elif action < 0.93:
            number = rng.choice(NUMBERS) % 2**64
            size = rng.choice((4, 8))
            out[at : at + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        elif action < 0.97:
            out[at : at + 4] = struct.pack("<f", rng.choice((float("nan"), float("inf"), 3e38, -3e38, 0.0)))
        else:
            del out[at:]
    return bytes(out)


def mutate_any(data: bytes, rng: Random) -> bytes:
    """Return damaged bytes of a format without a mutation of its own; the start is damaged more often."""
    return mutate_bytes(data, rng, rng.choice((16, 64, 512, len(data))))


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Return a damaged safetensors file: its length field, its header as JSON, or any bytes."""
    if len(data) < 8:
        return mutate_any(data, rng)
    (length,) = struct.unpack_from("<Q", data)
    action = rng.random()
    if action < 0.1:
        odd = rng.choice((0, 1, 2**31, 2**32, 2**63, 2**64 - 1, length + 1, length - 1, len(data), 100_000_001))
        return struct.pack("<Q", odd % 2**64) + data[8:]
    if action < 0.75 and length <= len(data) - 8:
        text = mutate_json(data[8 : 8 + length], rng)
        text += b" " * (-(8 + len(text)) % 64)
        return struct.pack("<Q", len(text)) + text + data[8 + length :]
    return mutate_bytes(data, rng, 8 + length if action < 0.9 else len(data))


@dataclass(frozen=True)
class _Gguf:
    """A GGUF file taken apart: keys as (key, type, value bytes), tensors as the bytes of their entries."""

    version: int
    keys: tuple[tuple[bytes, int, bytes], ...]
    tensors: tuple[tuple[bytes, tuple[int, ...], int, int], ...]  # name, dimensions, type, offset
    data: bytes
    claims: tuple[int, int] = (0, 0)  # added to the two counts

    def bytes(self) -> bytes:
        counts = (len(self.tensors) + self.claims[0]) % 2**64, (len(self.keys) + self.claims[1]) % 2**64
        out = [struct.pack("<4sIQQ", b"GGUF", self.version, *counts)]
        for key, kind, value in self.keys:
            out += [struct.pack("<Q", len(key)), key, struct.pack("<I", kind), value]
        for name, dimensions, kind, offset in self.tensors:
            out += [struct.pack("<Q", len(name)), name, struct.pack("<I", len(dimensions))]
            out.append(struct.pack(f"<{len(dimensions)}QIQ", *(d % 2**64 for d in dimensions), kind, offset % 2**64))
        text = b"".join(out)
        return text + bytes(-len(text) % 32) + self.data


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _value_end(data: bytes, at: int, kind: int) -> int:
    if kind == 8:
        return at + 8 + int(struct.unpack_from("<Q", data, at)[0])
    if kind != 9:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner != 8:
        return at + _SIZES[inner] * int(count)
    for _ in range(count):
        at = _value_end(data, at, 8)
    return at


@lru_cache(maxsize=256)
def _taken_apart(data: bytes) -> _Gguf | None:
    try:
        version, tensors, keys = struct.unpack_from("<IQQ", data, 4)
        at, found_keys, found_tensors = 24, [], []
        if tensors > 1000 or keys > 1000:
            return None
        for _ in range(keys):
            (size,) = struct.unpack_from("<Q", data, at)
            key, (kind,) = data[at + 8 : at + 8 + size], struct.unpack_from("<I", data, at + 8 + size)
            end = _value_end(data, at + 12 + size, kind)
            found_keys.append((key, kind, data[at + 12 + size : end]))
            at = end
        for _ in range(tensors):
            (size,) = struct.unpack_from("<Q", data, at)
            name, (rank,) = data[at + 8 : at + 8 + size], struct.unpack_from("<I", data, at + 8 + size)
            *dimensions, kind, offset = struct.unpack_from(f"<{min(rank, 9)}QIQ", data, at + 12 + size)
            found_tensors.append((name, tuple(dimensions), kind, offset))
            at += 12 + size + 8 * len(dimensions) + 12
        return _Gguf(version, tuple(found_keys), tuple(found_tensors), data[at + -at % 32 :])
    except (struct.error, KeyError, OverflowError, MemoryError):  # a damaged case that became a seed
        return None


def _odd(value: int, rng: Random) -> int:
    return rng.choice((*NUMBERS, value + 1, value - 1, value * 2, value + 32, value // 2, value << 32)) % 2**64


def _mutate_gguf_value(kind: int, value: bytes, rng: Random) -> tuple[int, bytes]:
    action = rng.random()
    if len(value) < (12 if kind == 9 else 8 if kind == 8 else 1):  # of an earlier mutation
        return kind, mutate_bytes(value, rng, len(value))
    if action < 0.15:
        return rng.choice((*range(14), 255, 2**31, 2**32 - 1)), value
    if kind == 8 and action < 0.6:
        (length,) = struct.unpack_from("<Q", value)
        text = mutate_bytes(value[8:], rng, 64) if action < 0.4 else str(rng.choice(VALUES)).encode()
        return kind, struct.pack("<Q", len(text) if rng.random() < 0.8 else _odd(length, rng)) + text
    if kind == 9 and action < 0.7:
        inner, count = struct.unpack_from("<IQ", value)
        if action < 0.3:
            return kind, struct.pack("<IQ", rng.choice((*range(14), 99)), count) + value[12:]
        return kind, struct.pack("<IQ", inner, _odd(count, rng)) + value[12:]
    if kind in (4, 5, 10, 11):
        size = _SIZES[kind]
        return kind, (_odd(int.from_bytes(value, "little"), rng) % (1 << 8 * size)).to_bytes(size, "little")
    if kind in (6, 12):
        number = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 1e-30, 1e30))
        return kind, struct.pack("<f" if kind == 6 else "<d", number)
    return kind, mutate_bytes(value, rng, len(value))


def mutate_gguf(data: bytes, rng: Random) -> bytes:
    """Return a damaged GGUF file: counts, keys, values, the tensor table, or any bytes."""
    file = _taken_apart(data)
    action = rng.random()
    if file is None or action < 0.2:
        return mutate_bytes(data, rng, rng.choice((24, 256, 4096, len(data))))
    for _ in range(rng.choice((1, 1, 2, 3))):
        file = _mutate_gguf_once(file, rng)
    return file.bytes()


def _mutate_gguf_once(file: _Gguf, rng: Random) -> _Gguf:
    action = rng.random()
    if action < 0.06:
        return replace(file, claims=(_odd(0, rng), 0) if rng.random() < 0.5 else (0, _odd(0, rng)))
    if action < 0.08:
        return replace(file, version=rng.choice((0, 1, 2, 4, 2**24, 3 << 24)))
    if action < 0.12:
        return replace(file, data=file.data[: rng.randrange(len(file.data) + 1)])
    if action < 0.2:
        return replace(file, data=mutate_bytes(file.data, rng, len(file.data)))
    if action < 0.6 and file.keys:
        keys = list(file.keys)
        at = rng.randrange(len(keys))
        key, kind, value = keys[at]
        how = rng.random()
        if how < 0.12:
            del keys[at]
        elif how < 0.2:
            keys.insert(rng.randrange(len(keys)), keys[at])
        elif how < 0.28:
            keys[at] = (rng.choice((b"", b"\xff", keys[rng.randrange(len(keys))][0], key + b"\0")), kind, value)
        else:
            keys[at] = (key, *_mutate_gguf_value(kind, value, rng))
        return replace(file, keys=tuple(keys))
    if not file.tensors:
        return file
    tensors = list(file.tensors)
    at = rng.randrange(len(tensors))
    name, dimensions, kind, offset = tensors[at]
    how = rng.random()
    if how < 0.12:
        del tensors[at]
    elif how < 0.2:
        tensors.insert(rng.randrange(len(tensors)), tensors[at])
    elif how < 0.3:
        other = tensors[rng.randrange(len(tensors))][0]
        tensors[at] = (rng.choice((b"", b"\xff", other, name + b"x", b"x" * 300)), dimensions, kind, offset)
    elif how < 0.45:
        tensors[at] = (name, dimensions, rng.choice((*range(45), 255, 2**31)), offset)
    elif how < 0.65:
        tensors[at] = (name, dimensions, kind, _odd(offset, rng))
    elif dimensions and how < 0.9:
        sizes = list(dimensions)
        place = rng.randrange(len(sizes))
        sizes[place] = _odd(sizes[place], rng)
        tensors[at] = (name, tuple(sizes), kind, offset)
    else:
        tensors[at] = (name, rng.choice(((), (1,) * 5, (0,), (2**32, 2**32), dimensions[::-1])), kind, offset)
    return replace(file, tensors=tuple(tensors))


_TEMPLATE_PARTS = (
    b"{% for x in range(100000) %}", b"{% endfor %}", b"{{ messages }}", b"{{ 'a' * 1000000 }}", b"{{ 9 ** 30 }}",
    b"{% set ns = namespace(s='ab') %}", b"{% set ns.s = ns.s ~ ns.s %}", b"{% set ns.s = ns.s + ns.s %}",
    b"{{ ns.s|replace('a', ns.s) }}", b"{{ 'a'|center(100000000) }}", b"{{ 'a'.ljust(100000000) }}",
    b"{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}", b"{{ f(3) }}", b"{% set x %}{% endset %}",
    b"{{ ''.__class__.__mro__ }}", b"{{ range(99999)|list|join('abc') }}", b"{{ messages[0].content[::-1] }}",
    b"{{ '%99999999d'|format(1) }}", b"{{ '{:>99999999}'.format(1) }}", b"{% if ", b"%}", b"{{ '", b"' }}",
    b"{% for x in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}", b"{{ lipsum(n=99999) }}",
    b"{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}", b"{{ 2.5|round(99999999) }}", b"{% include 'x' %}",
    b"{{ raise_exception('no') }}", b"{{ messages|tojson(indent=2) }}", b"{{ ((((((((((", b"))))))))))",
    b"{{ strftime_now('%Y' * 1000) }}", b"{% generation %}", b"{% endgeneration %}", b"{% break %}", b"{% continue %}",
    b"{{ 'a' | indent(99999999) }}", b"{{ [1] * 1000000 }}", b"{% set ns.s = ns.s * 999 %}", b"{{ ns.s|upper|length }}",
)  # fmt: skip


def mutate_template(data: bytes, rng: Random) -> bytes:
    """Return a damaged chat template: parts put in, doubled and moved, or any bytes."""
    out = data
    for _ in range(rng.choice((1, 2, 4, 8))):
        action = rng.random()
        if action < 0.3:
            out = mutate_bytes(out, rng, len(out))
            continue
        ends = [at for at in range(len(out) + 1) if out[at - 2 : at] in (b"}}", b"%}")] or [0]
        at, other = rng.choice(ends), rng.choice(ends)
        if action < 0.8:
            out = out[:at] + rng.choice(_TEMPLATE_PARTS) + out[at:]
        else:
            out = out[:at] + out[min(at, other) : max(at, other)] + out[at:]
        out = out[:20_000]
    return out


def mutation_of(name: str) -> Mutation:
    """Return how a file of this name is damaged."""
    if name.endswith((".json", ".index")):
        return mutate_json
    for end, mutation in ((".safetensors", mutate_safetensors), (".gguf", mutate_gguf), (".jinja", mutate_template)):
        if name.endswith(end):
            return mutation
    return mutate_any
