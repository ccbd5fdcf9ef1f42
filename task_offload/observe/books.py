"""A device's books. In: what was captured, what the cloud recorded, what was left. Out: counts that add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from task_offload.wire.messages import Totals


@dataclass
class Books:
    """Items of one run by how they ended. captured = completed + filtered + dropped + left, at the end."""

    captured: int = 0
    completed: int = 0
    filtered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    delivered_earlier: int = 0
    cloud_cpu_s: float = 0.0
    _told: Totals = field(default_factory=Totals)

    def learn(self, totals: Totals) -> int:
        """Enters what the cloud's books of this session hold that was not known. Returns how many items finished."""
        told, self._told = self._told, totals  # less than before: the cloud's books are those of a backup, or none
        completed, filtered = max(0, totals.completed - told.completed), max(0, totals.filtered - told.filtered)
        self.completed += completed
        self.filtered += filtered
        for reason, count in totals.dropped.items():
            if count > told.dropped.get(reason, 0):
                self.dropped[reason] += count - told.dropped.get(reason, 0)
        self.cloud_cpu_s += max(0, totals.cloud_cpu_us - told.cloud_cpu_us) / 1e6
        return completed + filtered

    @property
    def finished(self) -> int:
        return self.completed + self.filtered

    @property
    def ended(self) -> int:
        """Items whose end is known."""
        return self.finished + sum(self.dropped.values()) + sum(self.left.values())

    def items(self) -> dict[str, Any]:
        """The run report's `items`."""
        return {
            "captured": self.captured,
            "completed": self.completed,
            "filtered": self.filtered,
            "dropped": dict(self.dropped),
            "left": dict(self.left),
            "delivered_earlier": self.delivered_earlier,
        }

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.completed} completed", f"{self.filtered} filtered", f"{sum(self.dropped.values())} dropped"]
        if self.dropped:
            parts[-1] += f" ({', '.join(f'{count} {reason}' for reason, count in self.dropped.items())})"
        if self.left:
            parts.append(f"{sum(self.left.values())} left for the next run ({', '.join(self.left)})")
        if self.delivered_earlier:
            parts.append(f"{self.delivered_earlier} of an earlier run delivered")
        items = "1 item" if self.captured == 1 else f"{self.captured} items"
        return f"{items} captured = {' + '.join(parts[:3])}" + "".join(f", {part}" for part in parts[3:])
