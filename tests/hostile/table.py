"""Writes docs/hostile.md: every attack and its answer. ``python tests/hostile/table.py`` makes it anew."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "load")]
PAGE = HERE.parents[1] / "docs" / "hostile.md"
TITLES = {
    "R": "Registration and identity", "M": "Models that somebody asks for", "U": "Updates, in one message and as a stream",
    "K": "Uploads in chunks", "B": "Heartbeats and status", "S": "Bodies: safetensors", "Z": "Bodies: compression",
    "P": "Bodies: msgpack", "T": "Code", "X": "Below and beside the calls", "C": "A server that lies to an honest client",
}  # fmt: skip
HEAD = """# What is sent by those who mean harm, and what comes of it

Every line of this page is an attack that `tests/hostile` makes, with the answer that it must get; the page is made from the
same table, and a test compares them. The server is a process of its own with eight honest clients in the middle of their
rounds, a state directory and the settings that users get, but for a `stall_timeout` of {stall:g} s and no pause between
refusals.

What holds in every case, and is looked at behind each attack or each group of them:

- the answer comes within 2 s (streams that stand still: within the idle limit and 1 s);
- the server says SERVING, and answers the next call;
- every round ends with the same SHA-256 of the model, and the updates of the same clients, as in a run that nobody disturbs; no
  round fails; 99 of 100 heartbeats of honest clients take less than 2 s, on a machine of two cores that does all of this;
- the server's memory never grows by more than 64 MiB, or two updates if that is more;
- there is no new file outside the state directory, and nothing that was sent has run;
- what was refused is counted by reason (`fedcore status`), and told in a line of the log, of each peer one a second;
- a line of the log has at most 1 KiB and no control characters; nothing but warnings is in it.

{rows} attacks: {usual} are answered in the usual way; {other} in another, marked with *, and why that is right is said
beside it. An answer is a gRPC status and the reason that comes with it. A server that lies is met by a client process; its
answer is the error that `start_client` raises, and the client's memory has the same bounds.
"""


def tables():
    """Return the rows by group."""
    from rows import GROUPS, IDENTITIES, TRUSTED
    from rows.servers import ROWS

    found = {group: list(rows) for group, rows in GROUPS.items()} | {"C": list(ROWS)}
    for row in (*IDENTITIES, *TRUSTED):
        found[row.id[0]].append(row)
    return {group: sorted(rows, key=lambda row: int(row.id.lstrip("RMUKBSZPTXC-"))) for group, rows in found.items()}


def page():
    """Return the page."""
    from besieged import STALL

    groups = tables()
    rows = [row for group in groups.values() for row in group]
    usual = sum(row.usual for row in rows)
    parts = [HEAD.format(rows=len(rows), usual=usual, other=len(rows) - usual, stall=STALL)]
    for group, members in groups.items():
        parts.append(f"\n## {group}: {TITLES[group]}\n\n| | what is sent | answer | |\n|---|---|---|---|\n")
        parts += [
            f"| {row.id}{'' if row.usual else ' *'} | {_cell(row.what)} | {_cell(row.answer)} | {_cell(row.remark)} |\n"
            for row in members
        ]
    return "".join(parts)


def _cell(text):
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
