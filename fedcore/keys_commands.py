"""The commands that make tokens: ``fedcore keys init``, ``issue``, ``rotate``, ``retire``, ``revoke`` and ``show``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from fedcore.observers.units import count, harmless, table
from fedcore.tokens import KEYS, ROLES

__all__ = ["add_keys"]

_ROLES = [role.value for role in ROLES]
_SHORT = 16  # characters of an id
_DATE = len("2026-01-31")


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add what ``fedcore keys`` takes."""
    parser.description = (
        "A small issuer of tokens for one federation, in a folder. Whoever takes part gets a token in a file, which "
        "Grpc(token=...) shows over TLS; the server believes the tokens of Grpc(tokens=Tokens.of(DIR))."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_init(commands.add_parser("init", help="make an issuer"))
    _add_issue(commands.add_parser("issue", help="make a token"))
    _add_rotate(commands.add_parser("rotate", help="sign with a new key; tokens of the old one stay good"))
    _add_retire(commands.add_parser("retire", help="have servers refuse the tokens of an old key"))
    _add_revoke(commands.add_parser("revoke", help="have servers refuse the tokens of a name"))
    _add_show(commands.add_parser("show", help="list what was issued"))


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the issuer's folder")


# --- init -------------------------------------------------------------------------------------------------------------


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="where the issuer is to be; made, for its owner alone")
    parser.add_argument("--name", default="fedcore", help="what it is called in its tokens (default %(default)s)")
    parser.add_argument("--audience", metavar="A", help="which federation its tokens are for (default: its name)")
    parser.set_defaults(command=_init)


def _init(chosen: argparse.Namespace) -> int:
    from fedcore.keys import Issuer

    made = Issuer.init(chosen.folder, chosen.name, audience=chosen.audience)
    return _say(
        f"the issuer is in {made.folder}; its signing.key must stay there, and private",
        f'a server believes it with Grpc(tls=TLS(...), tokens=Tokens.of("{made.folder}"))',
        f"next: fedcore keys issue {made.folder} client NAME --out FILE, for each that takes part",
    )


# --- issue ------------------------------------------------------------------------------------------------------------


def _add_issue(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("role", choices=_ROLES, metavar="ROLE", help=f"what the bearer may do: {', '.join(_ROLES)}")
    parser.add_argument("name", metavar="NAME", help="who that is; a client's is its client_id")
    parser.add_argument("--out", required=True, metavar="FILE", help="where the token goes, readable by you alone")
    parser.add_argument("--days", type=int, default=30, help="how long it is good for (default %(default)s)")
    parser.set_defaults(command=_issue)


def _issue(chosen: argparse.Namespace) -> int:
    from fedcore.keys import Issuer

    made = Issuer(chosen.folder).issue(chosen.role, chosen.name, chosen.out, days=chosen.days)
    return _say(
        f"the token of {made.role} {made.name} is in {chosen.out}, good until {made.until[:_DATE]}; it must stay private",
        f'Grpc(tls=TLS(authority=...), token="{chosen.out}") shows it, wherever you move it to',
    )


# --- rotate and retire ------------------------------------------------------------------------------------------------


def _add_rotate(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.set_defaults(command=_rotate)


def _rotate(chosen: argparse.Namespace) -> int:
    from fedcore.keys import Issuer

    issuer = Issuer(chosen.folder)
    old = issuer.kid
    new = issuer.rotate()
    return _say(
        f"{new} signs from now on; tokens of {old} stay good. To a server that reads a copy of {KEYS}, copy it now",
        f"when everybody has a new token: fedcore keys retire {issuer.folder} {old}",
    )


def _add_retire(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("kid", metavar="KEY", help="the id of the key, as rotate and show say it")
    parser.set_defaults(command=_retire)


def _retire(chosen: argparse.Namespace) -> int:
    from fedcore.keys import Issuer

    issuer = Issuer(chosen.folder)
    lost = [each for each in issuer.good() if each.kid == chosen.kid]
    issuer.retire(chosen.kid)
    return _say(
        f"{chosen.kid} is gone, and with it {count(len(lost), 'token')} that would be good",
        f"servers that read {issuer.folder / KEYS} refuse them from now on; to a server that reads a copy, copy it again",
    )


# --- revoke -----------------------------------------------------------------------------------------------------------


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("name", metavar="NAME", help="whose tokens are no longer good")
    parser.set_defaults(command=_revoke)


def _revoke(chosen: argparse.Namespace) -> int:
    from fedcore.keys import Issuer

    issuer = Issuer(chosen.folder)
    found = issuer.revoke(chosen.name)
    return _say(
        f"revoked {count(len(found), 'token')} of {chosen.name}: {', '.join(each.jti[:_SHORT] for each in found)}",
        f"servers that read {issuer.revoked} refuse them from now on; to a server that reads a copy, copy it again",
    )


# --- show -------------------------------------------------------------------------------------------------------------


def _add_show(parser: argparse.ArgumentParser) -> None:
    _add_folder(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_show)


def _show(chosen: argparse.Namespace) -> int:
    from fedcore.keys import Issuer

    issuer = Issuer(chosen.folder)
    issued = [(each, issuer.state(each)) for each in issuer.issued()]
    if chosen.json:
        own = {"issuer": issuer.name, "audience": issuer.audience, "signs": issuer.kid, "keys": issuer.kids}
        return _say(json.dumps({**own, "issued": [{**asdict(each), "state": state} for each, state in issued]}))
    keys = ", ".join(f"{kid} (signs)" if kid == issuer.kid else kid for kid in issuer.kids)
    head = f"{harmless(issuer.name)}, for {harmless(issuer.audience)}; keys {keys}"
    rows = [(each.role, each.name, each.until[:_DATE], state, each.kid, each.jti[:_SHORT]) for each, state in issued]
    titles = ("role", "name", "until", "state", "key", "id")
    return _say(head, "", *(table([titles, *rows], left=range(6)) if rows else ["nothing was issued"]))


def _say(*lines: str) -> int:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0
