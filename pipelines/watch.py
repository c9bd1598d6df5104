"""`--watch`: a pipeline that keeps running, and a launcher that gives it each new shard's splits, until it is told to
stop. Imports job, manifest, splits, prism and watch_queue.

The launcher looks at the input three times an interval. A shard is taken once it is the same in two looks: until then
somebody is still writing it, as far as its store can tell. What is taken goes through the queue to the pipeline, and
is committed by the very code of a batch run. The manifest remembers what is done; nothing else outlives the process.
"""

from __future__ import annotations

import hashlib
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from pipelines import job, prism, storage
from pipelines.job import Done
from pipelines.manifest import Entry, Manifest
from pipelines.map_splits import DeadLettersError
from pipelines.options import Invocation
from pipelines.splits import Split
from pipelines.stage import Stage
from pipelines.storage import FileInfo, InputError
from pipelines.transient import StorageError
from pipelines.watch_queue import AHEAD, MapQueue, Queue

T = TypeVar("T")
Shard = tuple[str, FileInfo]  # as `splits.find_shards` gives them
SAME_SIGNAL = 1.0  # seconds within which a second signal is the first one again


class Stop:
    """Whether the watch was told to end: by the first SIGTERM or SIGINT; a later one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self.heard = 0.0  # when the first signal came

    def on_signals(self) -> Stop:
        """Listen to signals from now on (in the main thread)."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)
        return self

    def _hear(self, number: int, _frame: Any) -> None:
        self.asked = True  # nothing that could wait: the thread may be anywhere
        self.heard = self.heard or time.monotonic()
        # Who signals a process and then its whole group, as timeout(1) does, has asked once.
        if time.monotonic() - self.heard > SAME_SIGNAL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


class Watcher:
    """The launcher's side of a watch on one output.

    find: the shards of the input now, or an `InputError` where there are none. plan: the splits of a shard; one with
    a `problem` where it is bad. committed: whether a shard may be taken at all.
    """

    def __init__(
        self,
        invocation: Invocation,
        output: str,
        find: Callable[[], list[Shard]],
        committed: Callable[[Shard], bool] = lambda shard: True,
    ) -> None:
        self.invocation, self.args, self.output = invocation, invocation.args, output
        self.find, self.committed = find, committed
        self.plan: Callable[[Shard], list[Split]] = lambda shard: []
        self.stop = invocation.stop or Stop().on_signals()
        self.manifest = Manifest(output)
        self.entries = {e.name: e for e in self.manifest.entries()}
        self.look_seconds = self.args.watch_interval / 3
        self.tick_seconds = min(1.0, self.look_seconds)
        self.next_look = 0.0
        self.seen: dict[str, FileInfo] = {}  # at the last look, by URL
        self.steady: list[Shard] = []  # those that were the same at the look before
        self.planned: dict[str, list[Split]] = {}  # of every shard taken, by URL, as it was then
        self.waiting: deque[Split] = deque()
        self.queued: dict[str, Split] = {}  # by the URL of the split's file in the queue
        self.made: dict[str, Entry] = {}
        self.gone: set[str] = set()  # shards that were there once
        self.said = ""

    # ---- before the pipeline runs

    def until(self, attempt: Callable[[list[Shard]], T]) -> T | None:
        """What `attempt` gives for the shards that are there, tried until there is no `InputError` and the store
        answers; None when told to stop before."""
        while not self.stop.asked:
            self._check_lock()
            try:
                self._look()
                found = attempt(self.steady)
                return None if self.stop.asked else found
            except (InputError, StorageError) as e:
                self._say(f"waiting: {e}")
            self._pause(self.tick_seconds)
        return None

    def first(self, plan: Callable[[Shard], list[Split]]) -> list[Split] | None:
        """The splits of the first shards, once one of them has something to train on."""
        self.plan = plan

        def attempt(shards: list[Shard]) -> list[Split]:
            self._take(shards)
            planned = self._all_planned()
            if not any(s.bytes and not s.problem for s in planned):
                raise InputError(next((s.problem for s in planned if s.problem), "no shard is complete and has rows"))
            return planned

        return self.until(attempt)

    def execute(self, what: str, build: Callable[[Any], Any], streaming: bool = False) -> None:
        """`job.execute`, on a runner that the signals to stop do not reach."""
        prism.start(self.invocation)  # only now: it does not wait for hours for its first job
        job.execute(self.invocation, what, build, streaming)

    # ---- while it runs

    def run(self, stage: Stage) -> Done:
        """Keep the pipeline running until told to stop, then let it finish what it has begun.

        Raises `JobFailedError`, also where the job ends by itself, and `OutputLostError`.
        """
        self._retire_replaced(self.planned.keys() - self._busy())
        if not self.stop.asked:
            self._run(stage)
        planned = self._done()
        left = len(self.waiting) + len(self.queued)
        self._say(f"drained: {len(self.made)} splits published, {left} left for the next run")
        entries = [self.entries[s.name] for s in planned]
        return Done(planned, entries, [e for e in entries if e.name in self.made], sorted(self.gone))

    def _run(self, stage: Stage) -> None:
        queue = Queue(self.output)
        queue.open()
        transform = MapQueue(queue, stage, self.tick_seconds)
        running = _in_background(self.execute, f"{self.output}: a job", lambda p: p | transform, streaming=True)
        self._say(f"watching: a new shard is taken within {self.args.watch_interval:g} s")
        try:
            while not self.stop.asked and not running.done():
                try:
                    self.tick(queue)
                except StorageError as e:  # the launcher's, which may pass; of a worker's the job has failed
                    self._say(f"trying again: {e}")
                self._pause(self.tick_seconds)
        finally:
            if not self._is_lost():  # who has taken the output has cleared the queue, and does the work
                self._drain(queue, running)
        running.result()
        if not self.stop.asked:
            raise job.JobFailedError("the runner ended a job that was to go on: it cannot watch")
        self._check_lock()
        self._collect(self.queued)

    def _drain(self, queue: Queue, running: Future[None]) -> None:
        """Close the queue and wait until the job has ended: whatever goes wrong, what is begun is not to be lost."""
        if self.stop.asked:
            self._say("draining: what is begun is finished, what is not is left for the next run")
        while True:
            try:
                queue.close()
                break
            except Exception as e:
                self._say(f"cannot close the queue: {e}")
            if running.done():  # the next run removes what is left of it
                break
            time.sleep(self.tick_seconds)
        wait([running])

    def tick(self, queue: Queue) -> None:
        """Note what is done, look at the input if it is time to, and fill the queue up.

        Raises `StorageError`, after which it may be called again, and `OutputLostError`.
        """
        self._check_lock()
        if self.queued:
            files = queue.files()
            self._collect({u for u in self.queued if u not in files})
        try:
            if self._look():
                self._take(self.steady)
                self._retire_vanished()
        except InputError as e:  # nothing is there now, or it cannot be listed
            self._say(f"waiting: {e}")
        while self.waiting and len(self.queued) < AHEAD:
            self.queued[queue.put(self.waiting[0])] = self.waiting[0]
            self.waiting.popleft()

    def _look(self) -> bool:
        """Look at the input, if it is time to."""
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + self.look_seconds
        found = self.find()
        self.steady = [(name, f) for name, f in found if self.seen.get(f.url) == f]
        self.seen = {f.url: f for _, f in found}
        return True

    def _take(self, shards: list[Shard]) -> None:
        """Plan the shards that are new or have changed, but for those of which an older state is not done yet."""
        busy = self._busy()
        others = [s for s in shards if not self._is_planned(s[1]) and s[1].url not in busy]
        owners = {s.name: s.url for s in self._all_planned()} if others else {}
        with ThreadPoolExecutor(16) as pool:
            new = [s for s, ready in zip(others, pool.map(self.committed, others), strict=True) if ready]
            for (_, f), planned in zip(new, pool.map(self.plan, new), strict=True):
                if self.stop.asked:  # a backlog may be large
                    break
                self.planned[f.url] = planned = self._without_namesakes(planned, owners)
                owners.update((s.name, s.url) for s in planned)
                self.waiting += [s for s in planned if not (s.name in self.entries and self.entries[s.name].settles(s))]

    def _is_planned(self, f: FileInfo) -> bool:
        splits = self.planned.get(f.url)
        return bool(splits) and (splits[0].size, splits[0].version) == (f.size, f.version)

    def _without_namesakes(self, planned: list[Split], owners: dict[str, str]) -> list[Split]:
        """The splits of a shard; or, where one would take the place of another shard's, a dead letter of its own.

        owners: the shard's URL of every split planned, by its name.
        """
        for s in planned:
            other = owners.get(s.name)
            if other is None and s.name in self.entries:
                made_from = self.entries[s.name].source["url"]
                taken = made_from != s.url and made_from not in self.planned and not storage.is_gone(made_from)
                other = made_from if taken else None
            if other not in (None, s.url):
                apart = hashlib.sha256(s.url.encode()).hexdigest()[:8]
                problem = f"{s.url} would be written to {s.name}, which is made from {other}: rename one of them"
                return [Split(s.url, f"{s.shard_name}.namesake-{apart}", s.size, s.version, rows=0, problem=problem)]
        return planned

    def _collect(self, urls: Iterable[str]) -> None:
        """Take note of what is committed of these splits of the queue; the others of them stay."""
        with ThreadPoolExecutor(16) as pool:
            pairs = [(u, self.queued[u]) for u in urls]
            found = list(pool.map(lambda pair: self.manifest.get(pair[1].name), pairs))
        # An entry that was there before is of a bad shard, which is to be tried again and was not.
        new = {
            u: e for (u, s), e in zip(pairs, found, strict=True) if e and e.covers(s) and e != self.entries.get(s.name)
        }
        if not new:
            return
        for url, entry in new.items():
            del self.queued[url]
            self.entries[entry.name] = self.made[entry.name] = entry
        self._retire_replaced({e.source["url"] for e in new.values()} - self._busy())
        rows = sum(int(e.counts["rows_out"]) for e in new.values())
        dead = [e for e in new.values() if e.dead_letters]
        more = f", {len(dead)} of them with dead letters" if dead else ""
        self.said = ""
        self._say(f"published {len(new)} splits ({rows:,} rows){more}; {len(self.waiting) + len(self.queued)} to go")
        self._stop_at_limit()

    def _retire_replaced(self, shards: set[str]) -> None:
        """Remove what was made of these shards as other splits, before they changed."""
        planned = [s for url in shards for s in self.planned.get(url, [])]
        names = {s.name for s in planned}
        old = [e for e in self.entries.values() if e.source["url"] in shards and e.name not in names]
        if old:
            job.retire(self.manifest, planned, old, self.args)
            for e in old:
                del self.entries[e.name]

    def _retire_vanished(self) -> None:
        """Remove what was made of shards that are gone, unless it is to be kept."""
        self.gone -= self.seen.keys()
        missing = {e.source["url"] for e in self.entries.values()} - self.seen.keys() - self._busy() - self.gone
        theirs = [e for e in self.entries.values() if e.source["url"] in missing]
        gone = job.retire(self.manifest, [], theirs, self.args)
        self.gone |= set(gone)
        for url in gone:
            self.planned.pop(url, None)
        if self.args.on_vanished_shard == "retire":
            self.entries = {n: e for n, e in self.entries.items() if e.source["url"] not in gone}

    def _stop_at_limit(self) -> None:
        if self.args.max_dead_letters is None:
            return
        sums: Counter[str] = Counter()
        for s in self._done():
            counts = self.entries[s.name].counts
            sums.update({n: int(counts.get(n, 0)) for n in ("rows_in", "rows_dead", "bad_shards")})
        try:
            job.limit_dead_letters(self.args.max_dead_letters, {"output": self.output, **sums})
        except DeadLettersError:  # raised again, by the summary, once what is begun is committed
            self.stop.asked = True

    # ---- small things

    def _all_planned(self) -> list[Split]:
        return sorted((s for splits in self.planned.values() for s in splits), key=lambda s: (s.shard_name, s.index))

    def _done(self) -> list[Split]:
        return [s for s in self._all_planned() if s.name in self.entries and self.entries[s.name].covers(s)]

    def _busy(self) -> set[str]:
        return {s.url for s in (*self.waiting, *self.queued.values())}

    def _check_lock(self) -> None:
        if self.invocation.lock:
            self.invocation.lock.check()

    def _is_lost(self) -> bool:
        return self.invocation.lock is not None and self.invocation.lock.lost

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stop.asked and (left := end - time.monotonic()) > 0:
            time.sleep(min(0.1, left))

    def _say(self, text: str) -> None:
        """A line for people, unless it is the last one again."""
        if text != self.said:
            print(f"{time.strftime('%H:%M:%S')} {self.output.rpartition('/')[2]}: {text}", flush=True)
        self.said = text


def _in_background(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    """The call's future, in a thread that does not keep the process alive."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args, **kwargs))
        except BaseException as e:
            future.set_exception(e)

    threading.Thread(target=run, name="tokzip-watch", daemon=True).start()
    return future
