"""The commands about an audit log: ``fedcore audit verify`` and ``show`` look at one, ``copy`` keeps a copy of a server's."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcore import audit, audit_pages, connecting
from fedcore.audit import Verified
from fedcore.messages import AuditPage, AuditQuery
from fedcore.observers.units import count, harmless

__all__ = ["add_audit"]

_CHAIN = ("number", "time", "what", "before")
_LISTS = ("invited", "accepted", "missing")
_PAGE_TIMEOUT = 60.0  # seconds; a page has 256 KiB


def add_audit(parser: argparse.ArgumentParser) -> None:
    """Add what ``fedcore audit`` takes."""
    parser.description = "Look at the log of who did what, which a server keeps in its state directory."
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_verify(commands.add_parser("verify", help="check that nobody changed it"))
    _add_show(commands.add_parser("show", help="show what it says"))
    _add_copy(commands.add_parser("copy", help="keep a copy of a server's"))


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("log", metavar="LOG", help="the file, or the state directory that it is in")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _log(chosen: argparse.Namespace) -> Path:
    path = Path(chosen.log)
    return path / audit.NAME if path.is_dir() else path


# --- verify -----------------------------------------------------------------------------------------------------------


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check that no line was changed, left out or put in. That lines were cut off at the end, or all was written anew, is "
        "seen by whoever noted its head and number of lines elsewhere, and gives them here."
    )
    _add_log(parser)
    parser.add_argument("--expect", metavar="HEAD", type=_head, help="the head that was noted")
    parser.add_argument("--lines", metavar="N", type=int, default=0, help="how many lines there were then")
    parser.set_defaults(command=_verify)


def _head(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text.lower()):
        raise argparse.ArgumentTypeError("a head is 64 hexadecimal digits, as `fedcore audit verify` prints them")
    return text.lower()


def _verify(chosen: argparse.Namespace) -> int:
    path = _log(chosen)
    found = audit.verify(path, expect=chosen.expect or "", at=chosen.lines)
    if chosen.json:
        sys.stdout.write(json.dumps({"log": str(path), **asdict(found)}) + "\n")
        return 0
    said = _heading(found)
    if found.expected:
        since = count(found.lines - found.expected, "line")
        said.append(f"line {found.expected} has the hash that was noted, and {since} came behind it")
    if found.torn:
        said.append("the last line is half written and does not count: a crash leaves that, and nobody tampered with it")
    sys.stdout.writelines(f"{line}\n" for line in said)
    return 0


def _heading(found: Verified, new: str = "") -> list[str]:
    when = f", from {harmless(found.first)} to {harmless(found.last)}" if found.lines else ""
    return [f"whole: {count(found.lines, 'line')}{new}{when}", f"head {found.head}"]


# --- copy -------------------------------------------------------------------------------------------------------------


def _add_copy(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Copy a server's log to a file, or go on with that copy: what is new is added if it follows what is there. If the "
        "server no longer has what was copied, that is an error, and the copy stays as it was. For operators and admins; "
        "without certificates, for whoever is on the server's machine. The log says who read it."
    )
    connecting.add_options(parser, bearer="an operator or an admin")
    parser.add_argument("file", metavar="FILE", help="the copy; made if it is not there, for its owner alone")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_copy)


def _copy(chosen: argparse.Namespace) -> int:
    path = Path(chosen.file)
    with connecting.connect(chosen) as connection:
        done = audit_pages.copy(path, lambda after: connecting.ask(connection, AuditQuery(after), AuditPage, _PAGE_TIMEOUT))
    if chosen.json:
        sys.stdout.write(json.dumps({"log": str(path), **asdict(done.whole), "new": done.new}) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in _heading(done.whole, f", {done.new} new"))
    return 0


# --- show -------------------------------------------------------------------------------------------------------------


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show what a log says, a line for each event, as far as it holds together."
    _add_log(parser)
    parser.add_argument("--since", metavar="TIME", type=_time, help="from then on: 2026-11-30, or 2026-11-30T14:00; UTC")
    parser.add_argument("--client", metavar="NAME", help="only what this client, operator or admin did, or was done to it")
    parser.add_argument(
        "--kind", metavar="KIND", action="append", choices=audit.KINDS, help=f"only these; any of {', '.join(audit.KINDS)}"
    )
    parser.set_defaults(command=_show)


def _time(text: str) -> str:
    """Return a time as the log writes it, which sorts as text."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 2026-11-30 or 2026-11-30T14:00") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")


def _show(chosen: argparse.Namespace) -> int:
    path = _log(chosen)
    wanted = (line for line in audit.lines(path) if _is_wanted(line, chosen))
    sys.stdout.writelines(f"{json.dumps(line) if chosen.json else _as_text(line)}\n" for line in wanted)
    return 0


def _is_wanted(line: Mapping[str, Any], chosen: argparse.Namespace) -> bool:
    if chosen.kind and line.get("what") not in chosen.kind:
        return False
    if chosen.since and str(line.get("time")) < chosen.since:
        return False
    return chosen.client is None or chosen.client in _names(line)


def _names(line: Mapping[str, Any]) -> list[Any]:
    lists = [each for each in map(line.get, _LISTS) if isinstance(each, list | dict)]
    return [line.get("client_id"), line.get("peer"), *(name for each in lists for name in each)]


def _as_text(line: Mapping[str, Any]) -> str:
    facts = ((name, value) for name, value in line.items() if name not in _CHAIN and value not in ("", [], {}))
    said = "  ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in facts)
    when = str(line.get("time", ""))[:19].replace("T", " ")
    return f"{line['number']:>6}  {harmless(when)}  {harmless(str(line.get('what')))}  {harmless(said)}".rstrip()
