"""The attacks, by group."""

from rows import beats, bodies, downloads, identities, lines, registration, streams, updates

GROUPS = {
    "R": registration.ROWS, "M": downloads.ROWS, "U": updates.ROWS, "K": streams.ROWS, "B": beats.ROWS, "S": bodies.SAFETENSORS,
    "Z": bodies.COMPRESSION, "P": bodies.MSGPACK, "T": bodies.CODE, "X": lines.ROWS,
}  # fmt: skip
IDENTITIES, TRUSTED = identities.ROWS, bodies.TRUSTED
