"""Parked pulls: who is looked at when, against a plain model of it."""

import math
from concurrent.futures import Future

from hypothesis import given
from hypothesis import strategies as st

from fedcore.errors import NotRegistered
from fedcore.messages import Finished, Session, Wait
from fedcore.parking import Parked, Parking

NAMES = "abcd"
times = st.integers(0, 20).map(float)
parks = st.tuples(st.just("park"), st.sampled_from(NAMES), times)
settles = st.tuples(st.just("settle"), st.sets(st.sampled_from(NAMES)), times, st.booleans())


class Machine:
    """Has work for some, and notes whom it was asked about."""

    def __init__(self, wanted):
        self.wanted, self.asked = wanted, []

    def pull(self, session, now):
        self.asked.append(session.client_id)
        return Finished() if session.client_id in self.wanted else Wait()


def parked(name, until):
    return Parked(Session("run", name, "t"), until, Future())


@given(st.lists(st.one_of(parks, settles), max_size=40))
def test_it_does_what_a_list_would(steps):
    parking, plain = Parking(), {}
    for step in steps:
        if step[0] == "park":
            new = parked(*step[1:])
            assert parking.park(new) is plain.pop(new.session.client_id, None)
            plain[new.session.client_id] = new
        else:
            _, wanted, now, everybody = step
            machine = Machine(wanted)
            looked = [name for name, each in plain.items() if everybody or each.until <= now]
            gone = {name for name in looked if name in wanted or plain[name].until <= now}
            found = parking.settle(machine, now, everybody=everybody)
            assert sorted(machine.asked) == sorted(looked)
            assert {id(future) for _, future in found} == {id(plain.pop(name).future) for name in gone}
        assert parking.next_end == min((each.until for each in plain.values()), default=math.inf)
    assert {id(future) for future in parking.clear()} == {id(each.future) for each in plain.values()}
    assert parking.next_end == math.inf


def test_that_the_time_of_one_is_up_costs_no_look_at_the_others():
    parking = Parking()
    for number in range(1000):
        parking.park(parked(f"c{number}", float(number)))
    machine = Machine(())
    assert len(parking.settle(machine, 4.0, everybody=False)) == 5
    assert machine.asked == [f"c{number}" for number in range(5)]


def test_who_is_refused_is_told():
    class Refuses:
        def pull(self, session, now):
            raise NotRegistered("who?")

    parking = Parking()
    parking.park(parked("a", 1.0))
    [(error, _)] = parking.settle(Refuses(), 1.0, everybody=False)
    assert isinstance(error, NotRegistered)


def test_what_left_its_place_does_not_pile_up():
    parking = Parking()
    for number in range(10_000):
        parking.park(parked("a", 1e9 - number))
        assert parking.next_end == 1e9 - number
    assert len(parking._ends) < 100
