"""A certificate or a token revoked in mid-round: its calls are cut, its update does not count, and that is noted."""

import json
import threading
from time import monotonic

import pytest
import torch

from fedcore import TLS, Client, FedAvg, Grpc, Server, ServerConfig, Tokens, start_client
from fedcore.audit import verify
from fedcore.errors import AccessError, PermissionDenied
from fedcore.keys import Issuer
from fedcore.transports.grpc import TransferPolicy

pki = pytest.importorskip("fedcore.pki")
pytest.importorskip("cryptography")

MODEL = {"w": torch.zeros(4)}
PATIENCE = 30.0


class Gated(Client):
    def __init__(self):
        self.reached, self.gate = threading.Event(), threading.Event()

    def get_parameters(self):
        return MODEL

    def fit(self, parameters, config):
        self.reached.set()
        assert self.gate.wait(PATIENCE)
        return parameters, 1


class Free(Gated):
    def __init__(self):
        super().__init__()
        self.gate.set()


def wire(kit, **settings):
    return Grpc(tls=TLS.kit(kit, **settings), transfer=TransferPolicy(mode="stream"))


class Certificates:
    """Clients a and b, and how to have a server no longer believe a."""

    noun, error, reasons = "certificate", PermissionDenied, ("REVOKED",)

    def __init__(self, folder):
        self.authority = pki.Authority.init(folder / "pki")
        own = self.authority.issue("server", "server", hosts=["127.0.0.1"])
        self.server = {"tls": TLS.kit(own, revoked=self.authority.revoked)}
        self.clients = {name: {"tls": TLS.kit(self.authority.issue("client", name))} for name in ("a", "b")}

    def revoke(self):
        self.authority.revoke("a")


class ByTokens(Certificates):
    noun = "token"  # nothing else that a client sees is different

    def __init__(self, folder):
        super().__init__(folder)
        self.issuer, own = Issuer.init(folder / "issuer"), self.server["tls"]
        self.old = self.issuer.kid
        for name in ("a", "b"):
            self.issuer.issue("client", name, folder / name)
            self.issuer.rotate()  # each token is of another key
        trust = TLS(authority=own.authority)
        self.server = {"tls": TLS(certificate=own.certificate, key=own.key), "tokens": Tokens.of(self.issuer.folder)}
        self.clients = {name: {"tls": trust, "token": str(folder / name)} for name in ("a", "b")}

    def revoke(self):
        self.issuer.revoke("a")


class ByTokensOfAKeyThatIsRetired(ByTokens):
    error, reasons = AccessError, ("REVOKED", "UNAUTHENTICATED")  # what is cut off, and what comes after

    def revoke(self):
        self.issuer.retire(self.old)


@pytest.mark.parametrize("moment", ["training", "uploading"])
@pytest.mark.parametrize("means", [Certificates, ByTokens, ByTokensOfAKeyThatIsRetired])
def test_g11_in_the_middle_of_a_round(tmp_path, means, moment):
    known, streamed = means(tmp_path), {"transfer": TransferPolicy(mode="stream")}
    clients, errors, ended = {"a": Gated(), "b": Free()}, {}, {}

    def work(name):
        try:
            start_client(server.address, clients[name], name, transport=Grpc(**known.clients[name], **streamed))
        except Exception as error:
            errors[name], ended[name] = error, monotonic()

    config = ServerConfig(num_rounds=2, start_wait=1.0, heartbeat_interval=0.2, state_dir=str(tmp_path / "state"))
    with Server(
        "127.0.0.1:0", transport=Grpc(**known.server, **streamed), config=config,
        strategy=FedAvg(MODEL, min_fit_clients=1, clients_per_round=2),
    ) as server:  # fmt: skip
        if moment == "uploading":
            held = server.hub.uploads.budget
            held.enter(held.limit, lambda: None)  # nothing of it is taken in yet
            clients["a"].gate.set()
        threads = [threading.Thread(target=work, args=(name,)) for name in clients]
        for thread in threads:
            thread.start()
        assert clients["a"].reached.wait(PATIENCE)
        if moment == "uploading":
            assert wait_until(lambda: held.waiting == 2)
        known.revoke()
        revoked = monotonic()
        assert wait_until(lambda: "a" not in server.hub.coordinator.roster.members)
        assert monotonic() - revoked < 5.0
        clients["a"].gate.set()
        if moment == "uploading":
            held.leave(held.limit)
        history, _ = server.wait(PATIENCE)
        for thread in threads:
            thread.join(PATIENCE)
    assert [record.accepted for record in history.rounds] == [["b"], ["b"]]
    assert isinstance(errors["a"], known.error)
    assert errors["a"].reason in known.reasons
    assert errors.keys() == {"a"}
    log = tmp_path / "state" / "audit.jsonl"
    assert verify(log).lines
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["client_id"], line["reason"]) for line in lines if line["what"] == "ClientEvicted"] == [
        ("a", f"its {known.noun} was revoked")
    ]


def wait_until(holds):
    until = monotonic() + PATIENCE
    pause = threading.Event()
    while not (done := holds()) and monotonic() < until:
        pause.wait(0.01)
    return done


def test_a_new_certificate_of_the_same_name_is_good(tmp_path):
    authority = pki.Authority.init(tmp_path / "pki")
    own = authority.issue("server", "server", hosts=["127.0.0.1"])
    authority.issue("client", "a")
    authority.revoke("a")
    again = authority.issue("client", "a")
    with Server(
        "127.0.0.1:0", transport=wire(own, revoked=authority.revoked), config=ServerConfig(num_rounds=1, start_wait=0),
        strategy=FedAvg(MODEL),
    ) as server:  # fmt: skip
        start_client(server.address, Free(), "a", transport=wire(again))
        assert server.wait(PATIENCE)[0].rounds[0].accepted == ["a"]
