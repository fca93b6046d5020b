"""Everything that can happen to a server and its clients, as the rules of a machine that hypothesis drives."""

from dataclasses import replace

from bench import DEADLINE, LEASE, POLICIES, UNIT, Bench
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from witness import Witness

from fedcore.messages import Status, Task
from fedcore.testing.journal import STEPS

CLIENTS = "abcde"
ODD = ["late", "other", "not finite", "ahead", "behind", "older process"]

clients = st.sampled_from(CLIENTS)
values, weights = st.integers(-9, 9), st.integers(1, 4)
seconds = st.sampled_from([1.0, 6.0, 11.0, LEASE - 1, LEASE, LEASE + 1, 62.0, DEADLINE])
points = st.sampled_from([f"{step}.{where}" for step in STEPS if step != "elapse" for where in ("before", "after")])


class CrashMachine(RuleBasedStateMachine):
    """One server at a time, and five clients.

    Attributes:
        steps: how many rules were applied by all machines together.
    """

    steps = 0

    @initialize(policy=st.sampled_from(POLICIES), seed=st.integers(0, 1 << 16), rounds=st.sampled_from([2, 50]))
    def begin(self, policy, seed, rounds):
        self.witness = Witness(policy, LEASE, DEADLINE, UNIT)
        self.bench = self.witness.bench = Bench(policy, rounds, seed, self.witness)
        self.bench.start()
        for client in CLIENTS:
            self.bench.register(self.bench.agent(client))

    def teardown(self):
        if hasattr(self, "bench"):
            self.bench.close()

    @property
    def up(self):
        return self.bench.up

    @property
    def down(self):
        return self.bench.server is None

    @invariant()
    def all_holds(self):
        if hasattr(self, "bench"):
            type(self).steps += 1
            self.bench.retire()
            self.witness.judge()

    # --- what clients do ---

    @precondition(lambda self: self.up)
    @rule(client=clients, value=values, weight=weights, twice=st.booleans())
    def works(self, client, value, weight, twice=False):
        """Do what a link does: register if need be, ask for a task, hand in the answer, and wait for the next."""
        agent = self.bench.agent(client)
        self._is_known(agent)
        if agent.todo is None:
            self.bench.pull(agent, 60.0)
        if agent.todo is not None and self.bench.submit(agent, agent.todo, value, weight) is not None:
            if twice:
                self.bench.resend(self.bench.parcels[-1], again=False)
            self.bench.pull(agent, 60.0)

    def _is_known(self, agent):
        if agent.session is None or agent.session.token != self.witness.sessions.get(agent.client):
            self.bench.register(agent)

    @precondition(lambda self: self.up)
    @rule(value=values, weight=weights, some=st.permutations(CLIENTS), count=st.integers(1, 5))
    def many_work(self, value, weight, some, count):
        for number, client in enumerate(some[:count]):
            self.works(client, value + number, weight)

    @precondition(lambda self: self.up and self.bench.parcels)
    @rule(back=st.integers(0, 8), again=st.booleans())
    def sends_again(self, back, again):
        parcel = self.bench.parcels[-1 - back % len(self.bench.parcels)]
        if again and parcel.agent is self.bench.agent(parcel.agent.client):
            self._is_known(parcel.agent)
        self.bench.resend(parcel, again)

    @precondition(lambda self: self.up)
    @rule(client=clients, odd=st.sampled_from(ODD), value=values, weight=weights)
    def sends_what_does_not_count(self, client, odd, value, weight):
        agent, submit = self.bench.agent(client), self.bench.submit
        if odd == "late":
            if len(agent.tasks) > 1:
                submit(agent, agent.tasks[-2], value, weight)
        elif odd == "other":
            mine = [parcel.header for parcel in self.bench.parcels if parcel.agent is agent]
            if mine:
                submit(agent, Task(mine[-1].task_id, "fit", mine[-1].round, mine[-1].base_digest), value, weight)
        elif odd == "older process":
            older = [agent for agent in self.bench.agents[client][:-1] if agent.tasks]
            if older:
                submit(older[-1], older[-1].tasks[-1], value, weight)
        elif agent.tasks and odd == "not finite":
            submit(agent, agent.tasks[-1], value, weight, finite=False)
        elif agent.tasks:
            number = agent.tasks[-1].round + (1 if odd == "ahead" else -1)
            submit(agent, replace(agent.tasks[-1], id=f"fit-{number}-{client}", round=number), value, weight)

    @precondition(lambda self: self.up)
    @rule(client=clients, who=st.sampled_from(["the same", "an older one", "another", "another, later"]))
    def registers(self, client, who):
        agent, older = self.bench.agent(client), self.bench.agents[client]
        if who == "an older one":
            agent = older[max(0, len(older) - 2)]
        elif who != "the same":
            agent = self.bench.replace(client)
        if who != "another, later":
            self.bench.register(agent)

    @precondition(lambda self: self.up)
    @rule(client=clients, status=st.sampled_from([Status.IDLE, Status.TRAINING, Status.ERROR]))
    def beats(self, client, status):
        self.bench.beat(self.bench.agent(client), status)

    @precondition(lambda self: self.up)
    @rule(client=clients, wait=st.sampled_from([0.0, 60.0]))
    def pulls(self, client, wait):
        self.bench.pull(self.bench.agent(client), wait)

    @precondition(lambda self: self.up)
    @rule(client=clients)
    def gives_back(self, client):
        self.bench.give_back(self.bench.agent(client))

    # --- what happens to the server ---

    @precondition(lambda self: self.up)
    @rule(seconds=seconds, beats=st.booleans())
    def time_passes(self, seconds, beats):
        for _ in range(0, int(seconds), 5):
            for client in CLIENTS if beats else ():
                if self.up:
                    self.bench.beat(self.bench.agent(client))
            self.bench.advance(min(5.0, seconds))

    @precondition(lambda self: self.up)
    @rule(how=st.one_of(st.just("at once"), st.integers(0, 5), points))
    def crashes(self, how):
        if how == "at once":
            self.bench.crash()
        else:
            self.bench.doom = how

    @precondition(lambda self: self.up)
    @rule(
        client=clients, value=values, step=st.sampled_from(["close", "commit", "fail"]),
        where=st.sampled_from(["before", "after"]),
    )  # fmt: skip
    def crashes_at_the_deadline(self, client, value, step, where):
        self.works(client, value, 1)
        self.bench.doom = f"{step}.{where}"
        self.bench.advance(DEADLINE + 2)

    @precondition(lambda self: self.up and self.bench.parcels)
    @rule(back=st.integers(0, 8))
    def crashes_and_is_sent_it_again(self, back):
        self.bench.crash()
        self.bench.start()
        if self.up:
            self.sends_again(back, again=True)

    @precondition(lambda self: self.up)
    @rule(seconds=st.sampled_from([6.0, 40.0, 62.0]))
    def crashes_later_and_starts_at_once(self, seconds):
        self.bench.advance(seconds)
        if self.up:
            self.bench.crash()
            self.bench.start()

    @precondition(lambda self: self.up)
    @rule(point=points)
    def the_disk_takes_long(self, point):
        self.bench.hold = point

    @precondition(lambda self: self.up and not self.bench.held)
    @rule(
        client=clients, value=values, where=st.sampled_from(["before", "after"]),
        meanwhile=st.sampled_from(["nothing", "others work", "the deadline"]),
    )  # fmt: skip
    def an_update_takes_long(self, client, value, where, meanwhile):
        self.bench.hold = f"accept.{where}"
        self.works(client, value, 1)
        if meanwhile == "others work":
            self.many_work(value, 1, [other for other in CLIENTS if other != client], 4)
        elif meanwhile == "the deadline":
            self.bench.advance(DEADLINE + 2)

    @precondition(lambda self: self.up and self.bench.held)
    @rule()
    def the_disk_is_done(self):
        self.bench.release()

    @precondition(lambda self: self.up and not self.bench.full)
    @rule(seconds=st.sampled_from([0.0, 1.0, 6.0]))
    def the_disk_is_full(self, seconds):
        self.bench.full = True
        self.bench.advance(seconds)

    @precondition(lambda self: self.bench.full)
    @rule()
    def the_disk_has_room(self):
        self.bench.full = False
        self.bench.advance(2.0)

    @precondition(lambda self: self.up)
    @rule(how=st.sampled_from(["", "", "", "stop", "suspend"]))
    def is_told_to_end(self, how):
        if how:
            self.bench.stop(suspend=how == "suspend")

    @precondition(lambda self: self.down)
    @rule(after=st.sampled_from([0.0, 1.0, LEASE + 1]), found=st.booleans())
    def starts(self, after, found):
        self.bench.advance(after)
        self.bench.start()
        for client in CLIENTS if found else ():
            if self.up:
                self.bench.register(self.bench.agent(client))
