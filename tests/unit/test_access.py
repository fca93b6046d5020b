"""Who may do what: every role and every message, by a table that is written here, too."""

import pytest

from fedcore import messages as ms
from fedcore.access import check_access, claimed_by
from fedcore.errors import FedcoreError, PermissionDenied, Unauthenticated
from fedcore.security import Identity, Role, named, urn

SESSION = ms.Session("run-1", "a", "token")
MESSAGES = {
    "Register": ms.Register("a"),
    "Pull": ms.Pull(SESSION, 1.0),
    "Fetch": ms.Fetch(SESSION, "task", 10),
    "Submit": ms.Submit(SESSION, "task", 1, "attempt", "", 1, ms.Manifest("raw", 4096, (8,))),
    "Beat": ms.Beat(SESSION, ms.Status.IDLE),
    "StatusQuery": ms.StatusQuery(),
    "ModelQuery": ms.ModelQuery("d" * 64, 10),
    "AuditQuery": ms.AuditQuery(7),
    "Command": ms.Command(ms.Act.EVICT, "b"),
    "Unread": ms.Unread(),
}
ALLOWED, NAMELESS, DENIED = None, Unauthenticated, PermissionDenied
TABLE = {
    # message: anonymous, client, operator, admin, server
    "Register": (NAMELESS, ALLOWED, DENIED, DENIED, DENIED),
    "Pull": (NAMELESS, ALLOWED, DENIED, DENIED, DENIED),
    "Fetch": (NAMELESS, ALLOWED, DENIED, DENIED, DENIED),
    "Submit": (NAMELESS, ALLOWED, DENIED, DENIED, DENIED),
    "Beat": (NAMELESS, ALLOWED, DENIED, DENIED, DENIED),
    "StatusQuery": (NAMELESS, ALLOWED, ALLOWED, ALLOWED, DENIED),
    "ModelQuery": (NAMELESS, DENIED, ALLOWED, ALLOWED, DENIED),
    "AuditQuery": (NAMELESS, DENIED, ALLOWED, ALLOWED, DENIED),
    "Command": (NAMELESS, DENIED, DENIED, ALLOWED, DENIED),
    "Unread": (NAMELESS, DENIED, DENIED, DENIED, DENIED),
}
CELLS = [(message, role, *row) for message, wanted in TABLE.items() for role, *row in zip(Role, wanted, strict=True)]
CLAIMING = ["Register", "Pull", "Fetch", "Submit", "Beat"]


def answer(peer, message, **policy):
    """Return the kind of error that a peer gets, or None."""
    try:
        check_access(peer, message, **policy)
    except FedcoreError as error:
        return type(error)
    return None


def test_the_table_is_of_all_that_can_be_asked():
    asked = {each for each in vars(ms).values() if isinstance(each, type) and each in ms.Message.__args__}
    assert {kind.__name__ for kind in asked} == TABLE.keys() == MESSAGES.keys()
    assert {type(message) for message in MESSAGES.values()} == asked
    assert [role.value for role in Role] == ["anonymous", "client", "operator", "admin", "server"]


@pytest.mark.parametrize(("message", "role", "wanted"), CELLS)
def test_a_role_and_a_message(message, role, wanted):
    assert answer(Identity("here", "a", role), MESSAGES[message]) is wanted


@pytest.mark.parametrize(("role", "wanted"), list(zip(Role, [NAMELESS, ALLOWED, ALLOWED, ALLOWED, DENIED], strict=True)))
def test_where_the_model_is_shared_clients_may_have_it_too(role, wanted):
    assert answer(Identity("here", "a", role), ms.ModelQuery(), share_model=True) is wanted


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("role", [None, *Role])
def test_who_was_revoked_may_do_nothing(role, message):
    for here in ("here", "unix:"):
        with pytest.raises(PermissionDenied, match="this token was revoked") as info:
            check_access(Identity(here, "a", role, revoked="token"), MESSAGES[message], share_model=True)
        assert info.value.reason == "REVOKED"


@pytest.mark.parametrize("message", CLAIMING)
def test_nobody_speaks_for_somebody_else(message):
    for name in ("b", "", "A", "a.", "aa"):
        with pytest.raises(PermissionDenied, match="may not speak for 'a'") as info:
            check_access(Identity("here", name, Role.CLIENT), MESSAGES[message])
        assert info.value.reason == "IDENTITY_MISMATCH"
        assert not info.value.retryable


@pytest.mark.parametrize("message", [*CLAIMING, "StatusQuery"])
def test_where_nobody_is_verified_everybody_may(message):
    assert answer(Identity("here"), MESSAGES[message]) is None
    assert answer(Identity("here", "b"), MESSAGES[message]) is None


@pytest.mark.parametrize(("message", "says"), [("Command", "is told what to do"), ("AuditQuery", "shows its audit log")])
def test_but_some_things_from_the_server_s_own_machine_only(message, says):
    for here in ("memory:x", "unix:", "ipv4:127.0.0.1:5", "ipv6:[::1]:5"):
        assert answer(Identity(here), MESSAGES[message]) is None
    for elsewhere in ("", "ipv4:10.0.0.7:5", "ipv6:[2001:db8::1]:5"):
        with pytest.raises(Unauthenticated, match=f"without certificates a server {says} from its own machine only"):
            check_access(Identity(elsewhere), MESSAGES[message])


@pytest.mark.parametrize("role", Role)
def test_what_nobody_knows_is_nobody_s(role):
    class Unheard:
        session = SESSION

    assert answer(Identity("here", "a", role), Unheard()) in (Unauthenticated, PermissionDenied)


@pytest.mark.parametrize("empty", [ms.Register(""), ms.Pull(ms.Session("", "", ""))])
def test_a_message_that_names_nobody_is_left_to_those_who_look_further(empty):
    assert claimed_by(empty) == ""
    assert answer(Identity("here", "a", Role.CLIENT), empty) is None


def test_a_refusal_is_short_and_does_not_repeat_what_was_sent():
    for text in ("x" * 2**20, "\x1b[2J" * 1000):
        with pytest.raises(PermissionDenied) as info:
            check_access(Identity("here", "a", Role.CLIENT), ms.Register(text))
        assert len(str(info.value)) < 600
        assert "\x1b" not in str(info.value)


@pytest.mark.parametrize("message", MESSAGES)
def test_whoever_is_nobody_hears_why(message):
    with pytest.raises(Unauthenticated, match="it has expired"):
        check_access(Identity("here", role=Role.ANONYMOUS, problem="it has expired"), MESSAGES[message])


def test_refusals_are_not_tried_again():
    assert not Unauthenticated.retryable
    assert not PermissionDenied.retryable


class TestNamesInCertificates:
    @pytest.mark.parametrize("role", [role for role in Role if role is not Role.ANONYMOUS])
    def test_are_found_among_others(self, role):
        assert named(["localhost", urn(role, "a.b-c_9"), "10.0.0.7"]) == (role, "a.b-c_9")

    @pytest.mark.parametrize(
        "alternatives",
        [
            [],
            ["localhost"],
            ["urn:fedcore:anonymous:a"],
            ["urn:fedcore:root:a"],
            ["urn:fedcore:client:"],
            ["urn:fedcore:client:a\n"],
            ["urn:fedcore:client:a b"],
            ["urn:fedcore:client:../a"],
            ["URN:FEDCORE:CLIENT:A"],
            [" urn:fedcore:client:a"],
            ["urn:fedcore:client:a:admin"],
            ["urn:fedcore:client:" + "a" * 65],
            ["urn:fedcore:client:a", "urn:fedcore:admin:a"],
            ["urn:fedcore:client:a", "urn:fedcore:client:a"],
        ],
    )
    def test_that_are_none_or_several_are_nobody_s(self, alternatives):
        assert named(alternatives) == (Role.ANONYMOUS, "")
