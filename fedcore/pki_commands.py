"""The commands that make certificates: ``fedcore pki init``, ``issue``, ``request``, ``revoke`` and ``show``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fedcore.observers.units import count, harmless, table
from fedcore.security import AUTHORITY, CERTIFICATE, KEY, Role

if TYPE_CHECKING:
    from fedcore.pki import Authority, Issued

__all__ = ["add_pki"]

_SHORT = 16  # characters of a fingerprint
_ROLES = [role.value for role in Role if role is not Role.ANONYMOUS]
_DATE = len("2026-01-31")


def add_pki(parser: argparse.ArgumentParser) -> None:
    """Add what ``fedcore pki`` takes."""
    parser.description = (
        "A small certificate authority for one federation, in a folder. Whoever takes part gets a kit: a folder with a "
        "certificate, its key and the authority's certificate, which TLS.kit reads."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_init(commands.add_parser("init", help="make an authority"))
    _add_issue(commands.add_parser("issue", help="make a certificate, and a kit around it"))
    _add_request(commands.add_parser("request", help="make a key that stays here, and a request for the authority"))
    _add_revoke(commands.add_parser("revoke", help="have servers refuse the certificates of a name"))
    _add_show(commands.add_parser("show", help="list what was issued"))


# --- init -------------------------------------------------------------------------------------------------------------


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="where the authority is to be; made, for its owner alone")
    parser.add_argument("--name", default="fedcore", help="what it is called in its certificates (default %(default)s)")
    parser.add_argument("--days", type=int, default=3650, help="how long it is good for (default %(default)s)")
    parser.set_defaults(command=_init)


def _init(chosen: argparse.Namespace) -> int:
    from fedcore.pki import Authority

    made = Authority.init(chosen.folder, chosen.name, days=chosen.days)
    return _say(
        f"the authority is in {made.folder}, good until {made.until[:_DATE]}; its authority.key must stay there, and private",
        f"next: fedcore pki issue {made.folder} server NAME --host HOST, and one client NAME for each that takes part",
    )


# --- issue ------------------------------------------------------------------------------------------------------------


def _add_issue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the authority's folder")
    _add_who(parser)
    parser.add_argument(
        "--host", action="append", default=[], metavar="H",
        help="a server's name or address, as clients write it, without a port; may be given again",
    )  # fmt: skip
    parser.add_argument("--days", type=int, default=365, help="how long it is good for (default %(default)s)")
    parser.add_argument("--csr", metavar="FILE", help="a request of `fedcore pki request`: the key stays where it was made")
    parser.set_defaults(command=_issue)


def _add_who(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("role", choices=_ROLES, metavar="ROLE", help=f"what the bearer may do: {', '.join(_ROLES)}")
    parser.add_argument("name", metavar="NAME", help="who that is; a client's is its client_id")


def _issue(chosen: argparse.Namespace) -> int:
    from fedcore.pki import Authority

    authority = Authority(chosen.folder)
    kit = authority.issue(chosen.role, chosen.name, hosts=chosen.host, days=chosen.days, request=chosen.csr)
    until = authority.issued()[-1].until[:_DATE]
    revoked = f', revoked="{authority.revoked}"' if chosen.role == Role.SERVER else ""
    if chosen.csr is not None:
        return _say(
            f"{kit} holds {CERTIFICATE} and {AUTHORITY} of {chosen.role} {chosen.name}, good until {until}; neither is secret",
            f"send both back: they belong beside the {KEY} of the request, and TLS.kit(...) reads that folder",
        )
    return _say(
        f"the kit of {chosen.role} {chosen.name} is in {kit}, good until {until}; its {KEY} must stay private",
        f'Grpc(tls=TLS.kit("{kit}"{revoked})) uses it, wherever you move it to',
    )


# --- request ----------------------------------------------------------------------------------------------------------


def _add_request(parser: argparse.ArgumentParser) -> None:
    _add_who(parser)
    parser.add_argument("folder", metavar="DIR", help="where the key and the request go, and later the certificate")
    parser.set_defaults(command=_request)


def _request(chosen: argparse.Namespace) -> int:
    from fedcore.pki import make_request

    request = make_request(chosen.role, chosen.name, chosen.folder)
    host = " --host HOST" if chosen.role == Role.SERVER else ""
    return _say(
        f"{Path(chosen.folder) / KEY} must stay here, and private; {request} goes to the authority,",
        f"who runs `fedcore pki issue DIR {chosen.role} {chosen.name}{host} --csr {request.name}` and sends two files back",
    )


# --- revoke -----------------------------------------------------------------------------------------------------------


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the authority's folder")
    parser.add_argument("name", metavar="NAME", help="whose certificates are no longer good")
    parser.set_defaults(command=_revoke)


def _revoke(chosen: argparse.Namespace) -> int:
    from fedcore.pki import Authority

    authority = Authority(chosen.folder)
    found = authority.revoke(chosen.name)
    fingerprints = ", ".join(each.fingerprint[:_SHORT] for each in found)
    return _say(
        f"revoked {count(len(found), 'certificate')} of {chosen.name}: {fingerprints}",
        f"servers that read {authority.revoked} refuse them from now on; to a server that reads a copy, copy it again",
    )


# --- show -------------------------------------------------------------------------------------------------------------


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the authority's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_show)


def _show(chosen: argparse.Namespace) -> int:
    from fedcore.pki import Authority

    authority = Authority(chosen.folder)
    issued = [(each, _state(authority, each)) for each in authority.issued()]
    if chosen.json:
        own = {"name": authority.name, "until": authority.until, "fingerprint": authority.fingerprint}
        listed = [{**asdict(each), "state": state} for each, state in issued]
        return _say(json.dumps({"authority": own, "issued": listed}))
    head = f"{harmless(authority.name)}, good until {authority.until[:_DATE]}, fingerprint {authority.fingerprint}"
    rows = [(each.role, each.name, each.until[:_DATE], state, each.fingerprint[:_SHORT]) for each, state in issued]
    titles = ("role", "name", "until", "state", "fingerprint")
    return _say(head, "", *(table([titles, *rows], left=range(5)) if rows else ["nothing was issued"]))


def _state(authority: Authority, issued: Issued) -> str:
    if authority.is_revoked(issued):
        return "revoked"
    return "valid" if datetime.now(UTC) < datetime.fromisoformat(issued.until) else "expired"


def _say(*lines: str) -> int:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0
