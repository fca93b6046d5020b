"""A federation that says all it can: talkative.py FOLDER. See test_secrets.py, which looks through what it says.

Everything is logged, everything that holds a key or a token is printed, and whatever fails with one too, with its traceback.
"""

import json
import logging
import sys
import threading
import traceback
from pathlib import Path

import torch

from fedcore import TLS, Client, FedAvg, Grpc, Server, ServerConfig, Tokens, start_client
from fedcore.cli import main
from fedcore.errors import FedcoreError
from fedcore.keys import Issuer
from fedcore.messages import Pull, Register, Session, StatusQuery
from fedcore.pki import Authority
from fedcore.transports.grpc.credentials import Files

FOLDER = Path(sys.argv[1])
AUTHORITY, ISSUER = FOLDER / "authority", FOLDER / "issuer"
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)


def say(*things):
    for thing in things:
        sys.stdout.write(f"{thing!r} {thing}\n")


class Adds(Client):
    def get_parameters(self):
        return {"w": torch.zeros(4)}

    def fit(self, parameters, config):
        return {"w": parameters["w"] + 1}, 1


def kit(name):
    return TLS.kit(AUTHORITY / "kits" / name)


def federation():
    own = kit("server")
    alone = TLS(certificate=own.certificate, key=own.key)
    tokens = Tokens.of(ISSUER)
    for server_options, client_options in (
        ({"tls": TLS.kit(AUTHORITY / "kits" / "server", revoked=AUTHORITY / "revoked.txt")}, {"tls": kit("a")}),
        ({"tls": alone, "tokens": tokens}, {"tls": TLS(authority=own.authority), "token": str(FOLDER / "a.token")}),
    ):
        server_side, client_side = Grpc(**server_options), Grpc(**client_options)
        strategy = FedAvg({"w": torch.zeros(4)}, min_fit_clients=1, clients_per_round=1)
        config = ServerConfig(num_rounds=2, start_wait=0, heartbeat_interval=0.05)
        observed = []
        with Server(
            "localhost:0", config=config, strategy=strategy, transport=server_side, observers=[observed.append]
        ) as server:
            client = threading.Thread(
                target=start_client, args=(server.address, Adds(), "a"), kwargs={"transport": client_side}
            )
            client.start()
            server.wait(60.0)
            members = list(server.hub.coordinator.roster.members.values())
            Path(FOLDER, "sessions.json").write_text(json.dumps([member.token for member in members]))
            session = Session("run", "a", members[0].token)
            connection = client_side.connect(server.address)
            say(server_side, client_side, *vars(server_side).values(), *vars(client_side).values(), server, connection)
            say(*vars(connection).items(), *members, session, Pull(session), observed, server.hub.coordinator.rounds)
            connection.close()
            client.join(60.0)


def failing(what, attempt):
    sys.stdout.write(f"--- {what}\n")
    try:
        attempt()
    except (FedcoreError, SystemExit):
        sys.stdout.write(traceback.format_exc())
    else:
        raise AssertionError(f"{what} did not fail")


def command(*arguments):
    status = main([str(each) for each in arguments])
    if status:
        raise SystemExit(status)


def ask(address, **options):
    with Grpc(**options).connect(address) as connection:
        connection.request(StatusQuery(), timeout=10.0)
        connection.request(Register("b"), timeout=10.0)


def failures():
    own, strange = kit("server"), TLS(authority=kit("a").authority)
    for bad in ("broken", "locked", "another", "open"):
        folder = FOLDER / bad
        failing(f"a server whose key is {bad}", lambda folder=folder: Grpc(tls=TLS.kit(folder)).listen("localhost:0", print))
        failing(f"a client whose key is {bad}", lambda folder=folder: Files(TLS.kit(folder)))
        failing(f"a command with a key that is {bad}", lambda folder=folder: command("status", "x:1", "--tls-kit", folder))
    failing("an authority whose key is broken", lambda: Authority(FOLDER / "broken-authority").issue("client", "c"))
    failing("an authority whose key is locked", lambda: Authority(FOLDER / "locked-authority").issue("client", "c"))
    failing("a command of that", lambda: command("pki", "issue", FOLDER / "broken-authority", "client", "c"))
    failing("an issuer whose key is broken", lambda: Issuer(FOLDER / "broken-issuer").issue("client", "c", FOLDER / "c"))
    failing(
        "a command of that", lambda: command("keys", "issue", FOLDER / "broken-issuer", "client", "c", "--out", FOLDER / "c")
    )
    alone = Grpc(tls=TLS(certificate=own.certificate, key=own.key), tokens=Tokens.of(ISSUER))
    with Server("localhost:0", strategy=FedAvg({"w": torch.zeros(4)}), transport=alone) as server:
        for bad in ("a", "foreign", "spoilt", "open", "two-lines"):
            token = str(FOLDER / f"{bad}.token")
            failing(f"a token that is {bad}", lambda token=token: ask(server.address, tls=strange, token=token))
            where = (server.address, "--tls-authority", strange.authority, "--token", token)
            failing("a command of that", lambda where=where: command("stop", *where))


federation()
failures()
sys.stdout.write("all was said\n")
