"""One simulated device with its link and its share of the cloud. In: a world, a policy. Out: observations, windows.

Items go one by one through the stages of the way of an item. A stage starts with an item when the item is there, the
stage is free and what follows has room, so every time is the largest of a few earlier ones: exact for queues in
order, and a few microseconds an item.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from task_offload.scheduling.cost_model import Costs, compute_threads
from task_offload.scheduling.mix import Mixer
from task_offload.scheduling.observation import (
    MOST_AHEAD,
    TRAIN_BYTES,
    Observation,
    PayloadCost,
    Policy,
    Route,
    TaskCost,
)
from task_offload.scheduling.simulation.worlds import COMMIT_S, World, value_at

# The pipeline's own rules: what waits for a worker, and what waits for the window. A live source keeps only its newest
# item.
QUEUE, ROOM_ENTRIES, NEWEST = 1, 2, 1
# The window's: two items may always be on their way, and as many as wait for so long behind the largest of late.
LEAST_ITEMS, HORIZON_S, MEMORY_S = 2, 0.1, 1.5
WINDOW = 1024  # what a device tells its policy; its window is one of time
_NOISES = 4096
STALL_S = 0.018  # what a quota of 0.1 with a period of 20 ms lets a task wait
CROWDED = 0.85  # use of the device's cores from which its threads wait for each other


class Line:
    """A link whose rate changes: when do so many bytes, begun then, have left?"""

    def __init__(self, world: World, duration_s: float, tick_s: float = 0.25) -> None:
        count = int((duration_s + 3600.0) / tick_s)
        self._tick_s = tick_s
        self._rates = [0.0 if world.away(i * tick_s) else world.link_bytes_per_s(i * tick_s) for i in range(count)]
        self._sent = [0.0]
        for rate in self._rates:
            self._sent.append(self._sent[-1] + rate * tick_s)

    def end(self, begin_s: float, size_bytes: float) -> float:
        """When the last byte has left."""
        tick = int(begin_s / self._tick_s)
        if tick >= len(self._rates):
            return begin_s + 1e6
        rate = self._rates[tick]
        done = self._sent[tick] + (begin_s - tick * self._tick_s) * rate + size_bytes
        if done <= self._sent[tick + 1]:
            return begin_s + size_bytes / rate
        tick = bisect_right(self._sent, done, tick) - 1
        if tick >= len(self._rates):
            return begin_s + 1e6
        rate = self._rates[tick]
        return tick * self._tick_s + ((done - self._sent[tick]) / rate if rate else 0.0)


@dataclass(slots=True)
class Interval:
    """What falls into one interval of time, summed up."""

    captured: int = 0
    finished: int = 0
    dropped: int = 0
    late: int = 0
    acked: int = 0
    acked_bytes: float = 0.0
    rtt_s: float = 0.0
    queue_s: float = 0.0
    link_s: float = 0.0
    full_s: float = 0.0
    transfer_bytes: float = 0.0
    transfer_s: float = 0.0
    capture_s: float = 0.0
    device_s: float = 0.0
    cloud_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    here: dict[tuple[Route, int], list[float]] = field(default_factory=dict)
    there: dict[tuple[Route, int], list[float]] = field(default_factory=dict)


class _Times:
    """The mean times of a route under the costs of the moment."""

    __slots__ = (
        "after_s",
        "decode_s",
        "device_s",
        "encode_s",
        "first_s",
        "size_bytes",
        "stateful_there",
    )

    def __init__(self, costs: Costs, route: Route) -> None:
        split = route.split
        payload = costs.payloads[split, route.codec or "none"]
        self.first_s = costs.device_s[0]
        self.device_s = [sum(costs.device_s[1:end]) for end in range(split + 1)]
        self.encode_s = payload.encode_s
        self.size_bytes = payload.size_bytes
        self.decode_s = payload.decode_s
        last = len(costs.cloud_s) - 1
        self.after_s = [sum(costs.cloud_s[split:end]) for end in range(last + 1)]
        self.stateful_there = any(costs.stateful[split:last])


def _noises(random_: random.Random, spread: float) -> list[float]:
    sigma = math.sqrt(math.log(1.0 + spread * spread))
    return [math.exp(random_.gauss(-sigma * sigma / 2.0, sigma)) for _ in range(_NOISES)]


def _last(count: int) -> deque[float]:
    """Room for the times of the last so many items."""
    return deque([0.0] * count, maxlen=count)


class SimulatedDevice:
    """Runs a world's items under a policy's decisions, interval by interval."""

    def __init__(self, world: World, policy: Policy, seed: int, interval_s: float) -> None:
        self.world = world
        self.policy = policy
        self.interval_s = interval_s
        self.decision = policy.start()
        self.mixer = Mixer(self.decision)
        random_ = random.Random(seed)
        self._random = random_
        self._device_noise = _noises(random_, world.device_noise)
        self._cloud_noise = _noises(random_, world.cloud_noise)
        self._size_noise = _noises(random_, world.size_noise)
        self._chance = [random_.random() for _ in range(_NOISES)]
        self._line = Line(world, world.duration_s)
        self._item = 0
        self._tick = 0
        self._intervals: dict[int, Interval] = {}
        self._waiting: deque[float] = deque()
        self._arrival_s = random_.random() / world.source_fps if math.isfinite(world.source_fps) else 0.0
        self._cores = [0.0] * world.cores
        self._threads = threads = compute_threads(world.chain.stateful, world.chain.splits, world.cores)
        self._capture_free = self._thread_free = self._link_free = self._main_free = self._cloud_state_free = 0.0
        self._sent_s = self._acked_s = self._ready_s = 0.0
        self._workers: list[float] = [0.0]
        self._starts = _last(QUEUE + threads + 1)  # when a worker took the last items
        self._in_order = _last(MOST_AHEAD * threads)  # when they and all before them were done
        self._blocked: deque[tuple[float, float]] = deque()  # since when payloads waited for the window, and until when
        self._acks = _last(LEAST_ITEMS)
        self._largest_s, self._largest_at = 0.0, 0.0  # time on the link, and when
        self._inside = 0

    def advance(self, costs: Costs) -> tuple[Interval, Observation]:
        """Runs all items that are captured in the next interval, under the given costs."""
        end_s = (self._tick + 1) * self.interval_s
        self._run(end_s, costs)
        interval = self._intervals.pop(self._tick, None) or Interval()
        self._tick += 1
        self._inside += interval.captured - interval.finished - interval.dropped
        return interval, self._observe(end_s, interval, costs)

    def _at(self, second: float) -> Interval:
        tick = int(second / self.interval_s)
        interval = self._intervals.get(tick)
        if interval is None:
            interval = self._intervals[tick] = Interval()
        return interval

    def _run(self, end_s: float, costs: Costs) -> None:
        world, line = self.world, self._line
        live, paced = world.live, math.isfinite(world.source_fps)
        period_s = 1.0 / world.source_fps
        cores, waiting = self._cores, self._waiting
        starts, in_order, blocked, acks = self._starts, self._in_order, self._blocked, self._acks
        half_trip_s = world.rtt_s / 2.0
        window_s = world.rtt_s + COMMIT_S + HORIZON_S
        last = len(costs.cloud_s) - 1
        main_s = costs.cloud_s[last] / costs.main_share
        count = max(1, math.ceil(costs.workers))
        pace = count / max(costs.workers, 1e-6)
        if len(self._workers) != count:
            self._workers = sorted(self._workers)[-count:] + [max(self._workers)] * (count - len(self._workers))
        workers = self._workers
        survivals: list[tuple[float, int]] = []
        q = 1.0
        for i, share in enumerate(costs.survival[:last]):
            if share < 1.0:
                q *= share
                survivals.append((q, i))
        times: dict[Route, _Times] = {}
        while True:
            start = max(self._capture_free, starts[0])
            if paced:
                while self._arrival_s <= start:
                    waiting.append(self._arrival_s)
                    self._arrival_s += period_s
                    if live and len(waiting) > NEWEST:
                        dropped = self._at(max(waiting.popleft(), self._tick * self.interval_s))
                        dropped.captured += 1
                        dropped.dropped += 1
                if not waiting:
                    waiting.append(self._arrival_s)
                    self._arrival_s += period_s
                start = max(start, waiting[0])
            if start >= end_s:
                return
            captured_at = waiting.popleft() if paced else start
            route = self.mixer.next_route()
            t = times.get(route)
            if t is None:
                t = times[route] = _Times(costs, route)
            split = route.split
            i = self._item & (_NOISES - 1)
            j = (i * 7 + self._item // _NOISES * 13) & (_NOISES - 1)
            self._item += 1
            noise = self._device_noise[j]
            filtered_by = last
            chance = self._chance[j]
            for q, index in survivals:
                if chance >= q:
                    filtered_by = index
                    break
            begin = self._at(start)
            begin.captured += 1
            capture_s = t.first_s * noise
            self._capture_free = start + capture_s
            reached = min(split, filtered_by + 1)
            busy_s = t.device_s[reached] * noise
            here = begin.here.get((route, reached if filtered_by < split else -1))
            if here is None:
                here = begin.here[route, reached if filtered_by < split else -1] = [0, 0.0, 0.0, 0.0]
            here[0] += 1
            here[1] += noise
            begin.capture_s += capture_s
            # The first task has its own thread: it gets a core at once, and what ran there goes on later.
            core = cores.index(min(cores)) if len(cores) > 1 else 0
            cores[core] = max(cores[core], start) + capture_s
            if len(cores) > 1:
                core = cores.index(min(cores))
            work_start = max(self._capture_free, cores[core], in_order[0])
            while blocked and blocked[0][1] <= work_start:
                blocked.popleft()
            while len(blocked) >= ROOM_ENTRIES and blocked[ROOM_ENTRIES - 1][0] <= work_start:
                work_start = max(work_start, blocked.popleft()[1])
            if self._threads == 1:
                work_start = max(work_start, self._thread_free)
            starts.append(work_start)
            if filtered_by < split:
                done = work_start + busy_s
                cores[core] = self._thread_free = done
                self._ready_s = max(done, self._ready_s)
                in_order.append(self._ready_s)
                begin.device_s += capture_s + busy_s
                self._finish(done, done - captured_at)
                continue
            encode_s = t.encode_s * noise
            done = cores[core] = self._thread_free = work_start + busy_s + encode_s
            begin.device_s += capture_s + busy_s + encode_s
            size_noise = self._size_noise[i]
            size_bytes = t.size_bytes * size_noise
            here[2] += size_noise
            self._ready_s = max(done, self._ready_s)  # items leave in order
            in_order.append(self._ready_s)
            # To the system, whose queue is a part of the round trip.
            handed_s = max(self._ready_s, min(acks[0], self._acked_s - self._largest_s - window_s))
            if handed_s > self._ready_s:
                self._spread("full_s", max(self._ready_s, blocked[-1][1] if blocked else 0.0), handed_s)
                blocked.append((self._ready_s, handed_s))
            send = max(handed_s, self._link_free)
            sent = line.end(send, size_bytes)
            self._link_free = sent
            if sent - send >= self._largest_s or send - self._largest_at > MEMORY_S:
                self._largest_s, self._largest_at = sent - send, send
            arrived = sent + half_trip_s
            cloud_noise = self._cloud_noise[i]
            work_s = (t.decode_s + t.after_s[min(filtered_by + 1, last)]) * cloud_noise
            worker = workers.index(min(workers)) if count > 1 else 0
            taken = max(arrived, workers[worker])
            if t.stateful_there:
                taken = max(taken, self._cloud_state_free)
                self._cloud_state_free = taken + work_s * pace
            worked = taken + work_s * pace
            workers[worker] = worked
            cloud_s = work_s
            if filtered_by == last:
                self._main_free = max(worked, self._main_free) + main_s * cloud_noise
                worked = self._main_free
                cloud_s += costs.cloud_s[last] * cloud_noise
            acked = max(worked + COMMIT_S + half_trip_s, self._acked_s)
            self._spread("link_s", max(handed_s, self._acked_s), acked)
            self._acked_s = acked
            acks.append(acked)
            end = self._finish(acked, acked - captured_at)
            end.acked += 1
            end.acked_bytes += size_bytes
            end.rtt_s += acked - handed_s
            end.queue_s += taken - arrived
            end.cloud_s += cloud_s
            if size_bytes >= TRAIN_BYTES:
                end.transfer_bytes += size_bytes
                end.transfer_s += sent - send
            there = end.there.get((route, filtered_by))
            if there is None:
                there = end.there[route, filtered_by] = [0, 0.0]
            there[0] += 1
            there[1] += cloud_noise

    def _spread(self, name: Literal["link_s", "full_s"], begin_s: float, end_s: float) -> None:
        """Adds a stretch of time to the intervals that it falls into."""
        interval_s = self.interval_s
        for tick in range(int(begin_s / interval_s), int(end_s / interval_s) + 1):
            overlap_s = min(end_s, (tick + 1) * interval_s) - max(begin_s, tick * interval_s)
            if overlap_s > 0:
                interval = self._at((tick + 0.5) * interval_s)
                setattr(interval, name, getattr(interval, name) + overlap_s)

    def _finish(self, second: float, latency_s: float) -> Interval:
        interval = self._at(second)
        interval.finished += 1
        interval.latencies.append(latency_s)
        if self.world.max_latency_s is not None and latency_s > self.world.max_latency_s:
            interval.late += 1
        return interval

    def _observe(self, now_s: float, interval: Interval, costs: Costs) -> Observation:
        tasks = len(costs.device_s)
        device_items, device_s, device_out = [0] * tasks, [0.0] * tasks, [0] * tasks
        device_cpu_s = [0.0] * tasks
        # Under a quota the system tells what the process got, and how long it waited for more.
        slow = value_at(self.world.slowdown, now_s - self.interval_s / 2.0)
        share = min(1.0, 1.0 / slow) if self.world.quota else 0.0
        cloud_items, cloud_s, cloud_out = [0] * tasks, [0.0] * tasks, [0] * tasks
        sent: dict[tuple[int, str], list[float]] = {}
        unsent: Counter[tuple[int, str]] = Counter()
        for (route, filtered), (items, noise, sizes, _) in interval.here.items():
            ran = filtered if filtered >= 0 else route.split
            key = (route.split, route.codec or "none")
            for i in range(ran):
                device_items[i] += int(items)
                device_s[i] += noise * costs.device_s[i] * self._wobble(items, costs.device_s[i])
                device_cpu_s[i] += noise * costs.device_s[i] * share
                device_out[i] += int(items)
            if filtered >= 0:
                device_out[ran - 1] -= int(items)
                unsent[key] += int(items)
            else:
                each = costs.payloads[key]
                cost = sent.setdefault(key, [0.0, 0.0, 0.0, 0.0, 0.0])
                cost[0] += items
                cost[1] += each.size_bytes * sizes
                cost[2] += each.encode_s * noise
        for (route, filtered), (items, noise) in interval.there.items():
            for i in range(route.split, min(filtered + 1, tasks)):
                cloud_items[i] += int(items)
                cloud_s[i] += noise * costs.cloud_s[i] * self._wobble(items)
                cloud_out[i] += int(items)
            if filtered < tasks - 1:
                cloud_out[filtered] -= int(items)
            key = (route.split, route.codec or "none")
            cost = sent.setdefault(key, [0.0, 0.0, 0.0, 0.0, 0.0])
            cost[3] += items
            cost[4] += costs.payloads[key].decode_s * noise
        use = interval.device_s / (self.interval_s * self.world.cores)
        crowd = min(max((use - CROWDED) / (1.0 - CROWDED), 0.0), 1.0)
        if crowd and not self.world.live:
            # The capture thread and the workers wait for each other's core, and the clock runs on. (Of a live source,
            # which waits for its sensor, the CPU time counts.) The more cores, the less they meet.
            crowd /= self.world.cores
            device_s[0] *= 1.0 + crowd
            rest = max(interval.device_s - interval.capture_s, 1e-9)
            for i in range(1, tasks):
                device_s[i] *= 1.0 + crowd * min(1.0, 0.5 * interval.capture_s / rest)
        held_s = 0.0
        if not math.isfinite(self.world.source_fps):
            held_s = max(0.0, self.interval_s - interval.capture_s)
        elif not self.world.live and self._waiting:
            held_s = max(0.0, min(self.interval_s, now_s - self._waiting[0]))
        return Observation(
            now_s=now_s,
            interval_s=self.interval_s,
            captured=interval.captured,
            finished=interval.finished,
            dropped=interval.dropped,
            device=tuple(map(TaskCost, device_items, device_s, device_out, device_cpu_s)),
            cloud=tuple(map(TaskCost, cloud_items, cloud_s, cloud_out)),
            payloads={
                key: PayloadCost(int(c[0]), int(c[1]), c[2], int(c[3]), c[4], c[2] * share) for key, c in sent.items()
            },
            unsent=unsent,
            acked_bytes=int(interval.acked_bytes),
            link_busy_s=min(interval.link_s, self.interval_s),
            rtt_s=interval.rtt_s / interval.acked if interval.acked else None,
            acked=interval.acked,
            queue_s=interval.queue_s / interval.acked if interval.acked else 0.0,
            backlog=self._inside,
            source_rate=self.world.source_fps if self.world.states_rate else None,
            cores=self.world.cores,
            workers=costs.workers,
            main_share=costs.main_share,
            window=WINDOW,
            window_full_s=min(interval.full_s, self.interval_s),
            in_local_outage=self.world.away(now_s),
            held_s=held_s,
            transfer_bytes=int(interval.transfer_bytes),
            transfer_s=interval.transfer_s,
            late=interval.late,
            cpu_s=interval.device_s * share if share else None,
            delayed_s=interval.device_s * (1.0 - share) if share else None,
            threads=float(self.world.cores),
        )

    def _wobble(self, items: float, task_s: float | None = None) -> float:
        """A task's own noise, beside that of its item.

        Under a CPU quota a task either runs at full speed or carries a stall of almost a period: few of its runs
        hold most of its time.
        """
        if task_s is not None and self.world.quota:
            shape = max(items * task_s / STALL_S, 1e-3)
            return self._random.gammavariate(shape, 1.0 / shape)
        return max(0.3, 1.0 + self._random.gauss(0.0, 0.1) / math.sqrt(items))
