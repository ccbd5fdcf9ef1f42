"""Local-only mode: every task on this device. In: a config. Out: an exit status."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext

from task_offload.emulated_cpu import EmulatedCpu
from task_offload.errors import OffloadError, SourceError
from task_offload.run import Run, open_source
from task_offload.runner import Kind, Runner, States, TaskErrorLog, pause_s, settle
from task_offload.task import Item


class LocalRun(Run):
    """Every task on this device, in one loop, on the main thread."""

    def run(self) -> int:
        config, chain, meters = self.config, self.chain, self.meters
        cpu = EmulatedCpu(config.emulate_cpu) if config.emulate_cpu is not None else None
        error: OffloadError | None = None
        self.rate = open_source(chain, config.source)
        self.signals.listen(config.drain_s)
        settle()
        due = self.begin()
        if config.duration_s is not None:  # it holds for a sensor that yields nothing more, too
            self.signals.end_task_in(config.duration_s + config.drain_s)
        pace_s = self.pace_s()
        runner, states, errors = Runner(chain), States(), TaskErrorLog(chain.names)
        tasks, failures = len(chain.tasks), 0
        session = os.urandom(16).hex()
        books = self.books
        self.watchdog.ready()
        self.watchdog.beat_always()  # a sensor may yield nothing for hours
        self.say(f"running all {tasks} tasks of {config.app} on this device; Ctrl-C ends it")
        while not self.signals.count and (config.items is None or books.captured < config.items):
            now = time.monotonic()
            if self.window_due(now):
                self.end_window(now, books.finished)
            if config.duration_s is not None and now - self.began_at >= config.duration_s:
                break
            if pace_s is not None:
                if self.signals.wait(max(0.0, due - now)):
                    break
                due = max(due + pace_s, time.monotonic() - pace_s)
            item = Item(config.device_name, session, books.captured, time.time(), tasks)
            try:
                self.signals.in_task = True
                with cpu.work() if cpu is not None else nullcontext():
                    outcome = runner.run(item, states, (), 0, tasks)
                self.signals.in_task = False
            except SourceError as problem:
                error = problem
                break
            except KeyboardInterrupt:
                if item.state is not states.of_task(0):  # the first task had yielded it
                    books.captured += 1
                    meters.splits[tasks] += 1
                    books.dropped["stopped"] += 1
                break
            if outcome.task == 0 and outcome.kind is Kind.FILTERED:
                break
            books.captured += 1
            meters.captured += 1
            meters.splits[tasks] += 1
            if outcome.kind is Kind.FAILED:
                errors.failed(outcome, config.device_name, item.sequence)
                books.dropped["task_error"] += 1
                if outcome.task == 0:
                    failures += 1
                    self.signals.wait(pause_s(failures))
                continue
            failures = 0
            if outcome.kind is Kind.COMPLETED:
                books.completed += 1
            else:
                books.filtered += 1
            meters.latency.add(sum(outcome.busy_ns[1:]) / 1e9)
        self.signals.in_task = False
        self.watchdog.stopping()
        return self.finish(
            {"decisions": [], "away_s": 0.0, "bytes_sent": 0, "cloud_cpu_s": 0.0, "reconnects": 0}, error
        )
