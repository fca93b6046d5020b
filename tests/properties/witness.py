"""Judges a server by what its clients were told, what is on its disk, and what was sent; it asks the server for little else.

What must hold has numbers. I1: an acknowledged update is in exactly one round, its own. I2: a client has one in a round.
I3: nothing else is in a model, and who sends a counted one again hears that it counts. I4: a round has one outcome. I5: a model
is the mean of its round's updates. I6: as many as the policy says, of clients that were asked, in sessions that were valid.
I8: a round ends in time. I10: a restart restores what is on the disk. I13: a refusal changes nothing. I15: a client is lost if
and only if it was silent. I16: whoever was told to stop gets no task. I20: the newest model is there, whole.
"""

from collections import Counter

from fedcore import digest, events
from fedcore.errors import ConnectionLost, FedcoreError, Fenced, OutOfStorage, RemoteError, SessionError, TooOften
from fedcore.messages import (
    Assigned,
    Beat,
    BeatReply,
    Directive,
    Finished,
    Kind,
    Outcome,
    Pull,
    Register,
    Registered,
    Status,
    Submit,
    Submitted,
)

COUNTED = (Outcome.ACCEPTED, Outcome.DUPLICATE)
FRIENDLY = ("the server was stopped", "")
KNOCKS = 10  # times that a client may register whenever it likes
ELAPSE = 2.0  # seconds of a round that a crash may forget: it is noted every fiftieth of the deadline how long it has lasted


class Violation(AssertionError):
    """Something happened that must not."""


class Witness:
    """Remembers what is known, and says what must not be."""

    def __init__(self, policy, lease, deadline, unit):
        self.policy, self.lease, self.deadline, self.unit = policy, lease, deadline, unit
        self.bench = None
        self.told = {}  # by task id: the parcel that was acknowledged
        self.first = Counter()  # by task id: how often it was accepted, and not merely a duplicate
        self.given, self.returned, self.struck = set(), set(), set()  # task ids
        self.pages, self.outcomes = {}, {}
        self.seen = {}  # by client: the processes in the order in which they were welcomed
        self.wished = {}  # by client: the processes that asked to be
        self.age, self.slack = Counter(), Counter()
        self.violations = []
        self._new_life()

    def expect(self, holds, text):
        """Note a violation unless something holds; it is raised when everything rests."""
        if not holds:
            self.violations.append(text)

    def check(self):
        """Raise what was noted."""
        if self.violations:
            raise Violation("; ".join(self.violations))

    # --- lives ---

    def _new_life(self):
        self.sessions = {}  # by client: the token of the last welcome
        self.heard_at, self.perhaps_at = {}, {}  # by client: when it was heard last, at least and at most
        self.errors = set()  # clients that said they failed, or were told to come later
        self.knocks = Counter()  # by client: how often it registered
        self.stopped, self.open = set(), None
        self.began = self.bench.scheduler.now if self.bench else 0.0

    def restoring(self, journal):
        """A server is about to start: what it will find is the same however often it looks."""
        self.began = self.bench.scheduler.now
        one, two = journal.restore(0.0), journal.restore(0.0)
        if one is not None:
            same = (one.number, one.digest, one.page, one.entries, one.events, one.clients, one.outcomes)
            self.expect(
                same == (two.number, two.digest, two.page, two.entries, two.events, two.clients, two.outcomes),
                "I10: restoring twice gives two things",
            )

    def started(self):
        """A server has started: it is where the disk says."""
        disk, machine = self.bench.disk, self.bench.machine
        if not disk.run_id or machine.phase == "finished" or self.bench.held:
            return
        last = max(disk.pages)
        page = disk.pages[last]
        if self.open is not None or page.state in ("open", "closed"):
            return
        self.expect(machine.round == last + 1, f"I10: round {last} is over, and the server is at {machine.round}")

    def died(self):
        """The server is gone."""
        self.slack[max(self.bench.disk.pages, default=0)] += ELAPSE
        self._new_life()

    def passes(self, seconds):
        """Time is about to pass."""
        bench = self.bench
        self._strike()
        if self.open is not None and bench.up and not bench.server.hub.suspended:
            self.age[self.open] += seconds
            if bench.full:
                self.slack[self.open] += seconds

    def _strike(self):
        """Take note of whose place in the round is free, because nobody heard of them for a lease."""
        number = max(self.bench.disk.pages, default=0)
        for client in self.bench.disk.pages[number].invited if number else ():
            if self.bench.scheduler.now >= self.heard_at.get(client, self.began) + self.lease - 1.0:
                self.struck.add(f"fit-{number}-{client}")

    # --- what clients hear ---

    def asks(self, asked):
        """A request is about to reach the server."""
        client = asked.agent.client
        asked.current = asked.session is not None and self.sessions.get(client) == asked.session.token
        asked.before = self._state()
        asked.known = isinstance(asked.message, Submit) and asked.message.task_id in self.told
        asked.busy = bool(self.bench.held) or self.bench.doom is not None or self.bench.full
        if asked.current or isinstance(asked.message, Register):
            self.perhaps_at[client] = asked.at
        if isinstance(asked.message, Register):
            self.wished.setdefault(client, set()).add(asked.agent.instance)
            self.knocks[client] += 1

    def heard(self, asked):
        """A client is told something."""
        reply, message, client = asked.reply, asked.message, asked.agent.client
        self.expect(not isinstance(reply, RemoteError), f"an internal error: {reply}")
        self.expect(not isinstance(reply, BaseException) or isinstance(reply, FedcoreError), f"{reply!r} is no error of ours")
        if not isinstance(reply, SessionError | ConnectionLost) and not isinstance(message, Register):
            self.expect(asked.current, f"I6: {asked.agent.instance} spoke under a session that was not {client}'s last")
            self.perhaps_at[client] = self.bench.scheduler.now
            if not isinstance(reply, FedcoreError):
                self.heard_at[client] = max(self.heard_at.get(client, 0.0), asked.at)
        if isinstance(message, Register):
            self._registered(asked)
        elif isinstance(message, Beat) and isinstance(reply, BeatReply):
            self._beaten(asked)
        elif isinstance(message, Pull) and isinstance(reply, Assigned):
            self._assigned(asked)
        elif isinstance(message, Submit) and isinstance(reply, Submitted):
            self._submitted(asked)
        if isinstance(reply, Finished) or getattr(reply, "directive", None) is Directive.STOP:
            self.stopped.add(client)

    def _registered(self, asked):
        reply, client, instance = asked.reply, asked.agent.client, asked.agent.instance
        older = self.seen.setdefault(client, [])
        known = older.index(instance) if instance in older else None
        superseded = known is not None and 1 < len(older) - known <= 8
        if isinstance(reply, TooOften):  # its place is free until it comes for work
            self.expect(self.knocks[client] > KNOCKS, f"{instance} could not register: {reply!r}")
            self.errors.add(client)
            self.struck.add(f"fit-{max(self.bench.disk.pages, default=0)}-{client}")
            return
        if not isinstance(reply, Registered):
            rivals = self.wished[client] - {instance}
            fine = (isinstance(reply, Fenced) and rivals) or isinstance(reply, OutOfStorage)
            self.expect(fine or self.bench.server.hub.suspended, f"{instance} could not register: {reply!r}")
            return
        self.expect(not superseded, f"I6: {instance} was welcomed, but a newer process of {client} had been before")
        if known is None:
            older.append(instance)
        if self.sessions.get(client) != reply.session.token:
            self.errors.discard(client)
        self.sessions[client] = reply.session.token
        self.heard_at[client], self.perhaps_at[client] = asked.at, self.bench.scheduler.now
        noted = self.bench.disk.clients.get(client, [])
        self.expect(instance in noted, f"I6: {instance} was welcomed, but {noted} are noted")

    def _beaten(self, asked):
        beat, client = asked.message, asked.agent.client
        (self.errors.add if beat.status is Status.ERROR else self.errors.discard)(client)
        if beat.status is Status.ERROR and beat.task_id:
            self.returned.add(beat.task_id)

    def _assigned(self, asked):
        task, client = asked.reply.task, asked.agent.client
        self.errors.discard(client)
        self.expect(client not in self.stopped, f"I16: {client} was told to stop, and is given {task.id}")
        if task.kind is not Kind.FIT:
            return
        page = self.bench.disk.pages.get(task.round)
        self.expect(page is not None, f"{task.id} was given before its round was noted")
        if page is not None:
            models = [p.model for p in self.bench.disk.pages.values() if p.state == "committed" and p.number < task.round]
            self.expect(task.base_digest == page.base == models[-1], f"{task.id} is about a model that is not noted")
        self.given.add(task.id)

    def _submitted(self, asked):
        reply, parcel, header = asked.reply, asked.parcel, asked.message
        self.errors.discard(asked.agent.client)
        before = self.told.get(header.task_id)
        same = before and (before.header.digest, before.header.num_examples) == (header.digest, header.num_examples)
        if reply.outcome in COUNTED:
            self.expect(parcel.finite, f"{header.task_id} was accepted with numbers that are not finite")
            self.expect(before is None or same, f"I2: two updates were acknowledged for {header.task_id}")
            self.first[header.task_id] += reply.outcome is Outcome.ACCEPTED
            self.expect(self.first[header.task_id] <= 1, f"I2: {header.task_id} was accepted twice")
            self.told[header.task_id] = parcel
        elif same and asked.known and header.round > max(self.bench.disk.pages) - 15:  # so many rounds are remembered
            self.expect(False, f"I3: {header.task_id} was acknowledged, and sent again it is {reply.outcome}, {reply.reason}")
        elif reply.outcome is Outcome.REJECTED:
            self.returned.add(header.task_id)

    def settled(self, asked):
        """Everything rests after a request."""
        self._judge_pages()
        refused = isinstance(asked.reply, Submitted) and asked.reply.outcome not in COUNTED
        if refused and not asked.busy and asked.reply.reason != "NON_FINITE":
            now = self._state()
            self.expect(now == asked.before, f"I13: a refusal ({asked.reply.reason}) changed {asked.before} to {now}")

    def _state(self):
        """Return what no refusal may change."""
        disk = self.bench.disk
        pages = tuple((page.number, page.state, page.base, page.model) for _, page in sorted(disk.pages.items()))
        return pages, tuple(sorted(disk.entries)), self._counted() if self.bench.up else ()

    def _counted(self):
        fit = self.bench.machine.rounds.fit
        return tuple((a.id, a.digest, a.num_examples) for a in fit.accepted) if fit else ()

    # --- what observers hear ---

    def observed(self, event, life):
        """An observer of a server is told something."""
        disk = self.bench.disk
        if life != self.bench.life:
            return
        if isinstance(event, events.RoundOpened):
            self.open = event.round
        elif isinstance(event, events.RoundClosed | events.RunFinished):
            self.open = None
        elif isinstance(event, events.RoundCommitted | events.RoundFailed):
            wanted = "committed" if isinstance(event, events.RoundCommitted) else "failed"
            page = disk.pages.get(event.round)
            noted = page is not None and page.state == wanted
            self.expect(noted, f"I4: round {event.round} is said to be {wanted}, and noted as {page and page.state}")
            self.expect(event.round not in self.outcomes, f"I4: round {event.round} ended twice")
            self.outcomes[event.round] = event
            early = wanted == "failed" and self.age[event.round] < self.deadline - 1.0
            self.expect(not early, f"I8: round {event.round} failed after {self.age[event.round]} s, because {event.reason}")
            if wanted == "committed" and noted:
                self.expect(page.model == event.digest, f"I4: round {event.round} made another model than is noted")
                mine = tuple(entry.client_id for entry in disk.of(event.round))
                self.expect(mine == event.accepted, f"I3: round {event.round} is of {event.accepted}, and noted of {mine}")

    # --- what must hold whenever everything rests ---

    def judge(self):
        """Look at everything."""
        self._judge_pages()
        self._judge_entries()
        if self.bench.up and not self.bench.held and not self.bench.full and self.bench.machine.phase != "finished":
            self._judge_rest()
            self._judge_leases()
        if self.bench.up and self.bench.machine.phase == "finished":
            self._judge_end()
        for error in self.bench.errors:
            self.expect(False, f"the server did not start: {error!r}")
        self.check()

    def _judge_pages(self):
        disk = self.bench.disk
        self.expect(sorted(disk.pages) == list(range(len(disk.pages))), f"I4: rounds {sorted(disk.pages)}")
        for number, page in disk.pages.items():
            over = page.state in ("committed", "failed")
            self.expect(over or number == max(disk.pages), f"I4: round {number} is {page.state}, and a later one has begun")
            facts = (page.state, page.base, page.model, tuple(disk.of(number)))
            if number in self.pages:
                self.expect(self.pages[number] == facts, f"I4: round {number} was {self.pages[number]}, and is {facts}")
            elif over:
                self.pages[number] = facts
                if number and page.state == "committed":
                    self._judge_model(number, page)
        newest = [page for page in disk.pages.values() if page.state == "committed"]
        if newest:
            model = disk.models.get(newest[-1].model)
            whole = model is not None and digest(model) == newest[-1].model
            self.expect(whole, f"I20: the model of round {newest[-1].number} is not there")

    def _judge_model(self, number, page):
        entries = self.bench.disk.of(number)
        few, most = self.policy.quorum, self.policy.invitations
        self.expect(few <= len(entries) <= most, f"I6: round {number} has {len(entries)} updates, not {few} to {most}")
        parcels = [self._parcel(entry) for entry in entries]
        if None in parcels:
            return self.expect(False, f"I3: nobody sent what round {number} is made of")
        total = sum(entry.num_examples for entry in entries)
        mean = sum(parcel.value * entry.num_examples for parcel, entry in zip(parcels, entries, strict=True))
        wanted = self.unit * mean / total
        got = self.bench.disk.models[page.model]["w"].tolist()
        self.expect(got == [wanted, -wanted], f"I5: the model of round {number} is {got}, not {[wanted, -wanted]}")
        for entry in entries:
            asked = entry.client_id in page.invited or entry.task_id in self.given
            self.expect(asked, f"I6: {entry.client_id} was not asked for round {number}")
        return None

    def _parcel(self, entry):
        for parcel in self.bench.parcels:
            header = parcel.header
            if (header.task_id, header.digest, header.num_examples) == (entry.task_id, entry.digest, entry.num_examples):
                return parcel if parcel.finite else None
        return None

    def _judge_entries(self):
        disk = self.bench.disk
        for key, count in Counter((each.round, each.client_id) for each in disk.entries.values()).items():
            self.expect(count == 1, f"I2: {key[1]} has {count} updates in round {key[0]}")
        for task_id, parcel in self.told.items():
            noted, header = disk.entries.get(task_id), parcel.header
            wanted = (header.round, parcel.agent.client, header.digest, header.num_examples, header.round)
            found = noted and (noted.round, noted.client_id, noted.digest, noted.num_examples, noted.counted)
            self.expect(found == wanted, f"I1: {task_id} was acknowledged as {wanted}, and is noted as {found}")

    def _judge_rest(self):
        """Judge a server with nothing left to do: whatever could go on has gone on."""
        bench, disk = self.bench, self.bench.disk
        last = disk.pages[max(disk.pages)]
        if last.state == "closed":
            return self.expect(False, f"round {last.number} is closed, and nothing comes of it")
        complete = sum(page.state == "committed" for page in disk.pages.values()) > bench.config.num_rounds
        if last.state != "open":
            there = [c for c in self.sessions if self._lives(c) and c not in self.errors]
            stuck = len(there) >= self.policy.target and not complete
            return self.expect(not stuck, f"{there} are there, and no round opens after {last.number}")
        number, entries = last.number, disk.of(last.number)
        mine = tuple((entry.task_id, entry.digest, entry.num_examples) for entry in entries)
        counted = self._counted()
        self.expect(counted == mine, f"I10, I15: round {number} counts {counted}, and {mine} are noted")
        self.expect(bench.machine.round == number, f"I10: the server is at {bench.machine.round}, the disk at {number}")
        self.expect(len(entries) < self.policy.target, f"round {number} has {len(entries)} updates, and is still open")
        if self.open == number:
            limit = self.deadline + self.slack[number]
            self.expect(self.age[number] <= limit + 1e-6, f"I8: round {number} is open for {self.age[number]} s, not {limit}")
        for asked in bench.asked:
            client = asked.agent.client
            mine = f"fit-{number}-{client}"
            waits = isinstance(asked.message, Pull) and asked.current and asked.session.token == self.sessions.get(client)
            free = client in last.invited and mine not in disk.entries | dict.fromkeys(self.returned | self.struck)
            self.expect(not (waits and free), f"{client} waits for work, and nobody gives it {mine}")
        return None

    def _lives(self, client):
        return self.bench.scheduler.now < self.heard_at.get(client, -self.lease) + self.lease

    def _judge_leases(self):
        bench, now = self.bench, self.bench.scheduler.now
        members = {name for name, member in bench.machine.roster.members.items() if member.token}
        parked = {asked.agent.client for asked in bench.asked if isinstance(asked.message, Pull)}
        for client in self.sessions:
            if self._lives(client):
                self.expect(client in members, f"I15: {client}, heard at {self.heard_at[client]}, is struck off at {now}")
            elif now >= self.perhaps_at[client] + self.lease and client not in parked:
                self.expect(client not in members, f"I15: {client}, silent since {self.perhaps_at[client]}, lives at {now}")

    def _judge_end(self):
        bench, disk = self.bench, self.bench.disk
        failed = bench.machine.failed
        if failed in FRIENDLY:
            made = sum(page.state == "committed" for page in disk.pages.values()) - 1
            over = failed != "" or made >= bench.config.num_rounds
            return self.expect(over, f"the run ended with {made} rounds")
        row = [page.state for _, page in sorted(disk.pages.items())][-self.policy.max_failures :]
        hopeless = row == ["failed"] * self.policy.max_failures and "rounds in a row failed" in failed
        return self.expect(hopeless, f"the run ended: {failed}")
