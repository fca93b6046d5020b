"""Changes one field of a valid protobuf message, and leaves all others as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

Bytes = Callable[[bytes, Random], bytes]

INTEGERS = (0, 1, 2, 16, 127, 255, 4095, 4096, 65535, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 32) + 5, 1 << 48)
INTEGERS += ((1 << 63) - 1, 1 << 63, (1 << 64) - 1, -1, -(1 << 31), -(1 << 63))
REALS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, 1e308, -1e308, nan, inf, -inf)
TEXTS = (
    "", "x" * 65, "x" * 5000, "a\0b", "../../outside", "/abs/outside", "..", "con", "a\nb", "\u202eabc", "\uff21", "\u00e9",
    "e\u0301", "__metadata__", "__proto__", "f" * 64, "torch", "reference", "safetensors", "safetensors+lz4",
    "delta+zstd+lz4", "+", "lz4", "object", "S4", "i2,i2", ">f4", "M8[s]", "float64", "bool", "complex64", "float32",
    "loss",
)  # fmt: skip
_NOTHING = {Field.TYPE_STRING: "", Field.TYPE_BYTES: b""}
_BITS = {
    Field.TYPE_INT32: (-(1 << 31), 1 << 31), Field.TYPE_UINT32: (0, 1 << 32), Field.TYPE_UINT64: (0, 1 << 64),
    Field.TYPE_ENUM: (-(1 << 31), 1 << 31), Field.TYPE_FIXED32: (0, 1 << 32),
}  # fmt: skip


@dataclass
class Place:
    """A field of a message, set or not, or of one inside of it."""

    owner: Any
    field: Any

    @property
    def path(self) -> str:
        """What it is called."""
        return f"{self.field.containing_type.name}.{self.field.name}"


def places(message: Message) -> Iterator[Place]:
    """Yield every field, in an order that depends on the message alone."""
    for field in message.DESCRIPTOR.fields:
        yield Place(message, field)
        if field.message_type is None or (not field.is_repeated and not message.HasField(field.name)):
            continue
        found: Any = getattr(message, field.name)
        if _is_map(field):
            children = [found[key] for key in sorted(found)] if field.message_type.fields[1].message_type else []
        else:
            children = list(found) if field.is_repeated else [found]
        for child in children:
            yield from places(child)


def mutated(message: Message, random: Random, havoc: Bytes | None = None) -> tuple[Any, str]:
    """Return a copy of a message with one field changed, and what that field is called: "" if it has none.

    Args:
        message: a valid one; it stays as it is.
        random: chooses.
        havoc: changes the bytes of fields of bytes; None: they become others, or none.
    """
    made = type(message)()
    made.CopyFrom(message)
    if not (found := list(places(made))):
        return made, ""
    place = random.choice(found)
    change(place, random, havoc or _other_bytes)
    return made, place.path


def change(place: Place, random: Random, havoc: Bytes) -> None:
    """Change one field in place."""
    owner, field = place.owner, place.field
    if _is_map(field):
        _change_map(owner, field, random, havoc)
    elif field.is_repeated:
        _change_list(getattr(owner, field.name), field, random, havoc)
    elif field.message_type is not None:
        if owner.HasField(field.name) and random.random() < 0.7:
            owner.ClearField(field.name)
        else:
            getattr(owner, field.name).SetInParent()
    else:
        setattr(owner, field.name, _value(field, getattr(owner, field.name), random, havoc))


def _change_map(owner: Any, field: Any, random: Random, havoc: Bytes) -> None:
    found, value = getattr(owner, field.name), field.message_type.fields[1]
    key = random.choice([*sorted(found), "loss", "", "x" * 200, "\x1b[31m"])
    if key in found and random.random() < 0.5:
        del found[key]
    elif value.message_type is None:
        found[key] = _value(value, found[key], random, havoc)
    elif random.random() < 0.1:  # more than anybody has use for
        for index in range(random.choice([2, 255, 257])):
            found[f"key-{index}"].SetInParent()
    else:
        inner = random.choice(list(places(found[key])))  # makes the entry if there is none
        change(inner, random, havoc)


def _change_list(found: Any, field: Any, random: Random, havoc: Bytes) -> None:
    items, way = list(found), random.choice(["drop", "double", "change", "change", "turn", "many"])
    at = random.randrange(len(items)) if items else 0
    if way == "drop" and items:
        del items[at]
    elif way == "turn" and len(items) > 1:
        items.reverse()
    elif way == "many":
        items = items * random.choice([2, 20, 300]) if items else []
        items = items[:2000]
    elif field.message_type is not None:
        fresh = field.message_type._concrete_class()
        items.insert(at, items[at] if items and way == "double" else fresh)
    elif items and way == "double":
        items.insert(at, items[at])
    else:
        items[at : at + 1] = [_value(field, items[at] if items else _NOTHING.get(field.type, 0), random, havoc)]
    copies = [_copy(item) for item in items] if field.message_type is not None else items
    del found[:]
    found.extend(copies)


def _copy(message: Any) -> Any:
    made = type(message)()
    made.CopyFrom(message)
    return made


def _value(field: Any, was: Any, random: Random, havoc: Bytes) -> Any:
    if field.cpp_type == Field.CPPTYPE_BOOL:
        return not was
    if field.cpp_type in (Field.CPPTYPE_DOUBLE, Field.CPPTYPE_FLOAT):
        return random.choice(REALS)
    if field.type == Field.TYPE_STRING:
        return random.choice([*TEXTS, was[:-1], was + was, was.upper()])
    if field.type == Field.TYPE_BYTES:
        return havoc(was, random)
    if field.type == Field.TYPE_ENUM:
        return random.choice([*(value.number for value in field.enum_type.values), 99, -1])
    low, high = _BITS.get(field.type, (-(1 << 63), 1 << 63))
    return random.choice([each for each in (*INTEGERS, was + 1, was - 1, 2 * was) if low <= each < high])


def _other_bytes(was: bytes, random: Random) -> bytes:
    return random.choice([b"", b"\0", was[:-1], was + b"\0", bytes(reversed(was))])


def _is_map(field: Any) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def shaken(data: bytes, random: Random, most: int = 1 << 16) -> bytes:
    """Return bytes with a few of them changed, taken away, put in or doubled: what a fuzzer does, without one."""
    made = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4])):
        at = random.randrange(len(made) + 1)
        way = random.choice(["flip", "set", "number", "cut", "put", "double", "end"])
        if way == "flip" and at < len(made):
            made[at] ^= 1 << random.randrange(8)
        elif way == "set" and at < len(made):
            made[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif way == "number":
            size = random.choice([1, 2, 4, 8])
            made[at : at + size] = (random.choice(INTEGERS) % (1 << 8 * size)).to_bytes(size, random.choice(["little", "big"]))
        elif way == "cut":
            del made[at : at + random.choice([1, 2, 8, 200])]
        elif way == "put":
            made[at:at] = random.randbytes(random.choice([1, 4, 16]))
        elif way == "double":
            made[at:at] = made[at : at + random.choice([1, 8, 64, 1000])]
        elif way == "end":
            del made[at:]
    return bytes(made[:most])


def picked(items: Sequence[Any], selector: int) -> Any:
    """Return the item that a byte selects."""
    return items[selector % len(items)]
