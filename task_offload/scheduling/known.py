"""What is known of every option. In: costs, and how uncertain each is. Out: how uncertain an option is, and how good it
may be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from task_offload.scheduling import cost_model
from task_offload.scheduling.cost_model import Choice, Costs, Option
from task_offload.scheduling.payloads import PayloadSpread

LINK_MATTERS = 0.5  # of its busiest resource's use, an option's use of the link
HOPE = 0.9  # of its uncertainty, a cost may turn out to be lower


@dataclass(frozen=True)
class Known:
    """Costs, and how uncertain each is. An uncertainty, or spread, is relative; 1 is unknown.

    Attributes:
        costs: as they are believed.
        device, cloud: spread of each task's time on that side.
        payloads: by (split, codec).
        link: spread of its goodput.
        link_hope: how many times faster than believed the link may be.
    """

    costs: Costs
    device: Sequence[float]
    cloud: Sequence[float]
    payloads: Mapping[tuple[int, str], PayloadSpread]
    link: float
    link_hope: float

    @cached_property
    def reach(self) -> Sequence[float]:
        """For each split, the share of the items that get there."""
        found = [1.0]
        for share in self.costs.survival:
            found.append(max(found[-1] * share, 1e-3))
        return found

    @cached_property
    def _device_work(self) -> Sequence[float]:
        """For each split, the spread of what the device does."""
        return _sums(self.costs.device_s, self.device)

    @cached_property
    def _cloud_work(self) -> Sequence[float]:
        """For each split, the spread of what the cloud does beside decoding."""
        return _sums(self.costs.cloud_s[::-1], self.cloud[::-1])[::-1]

    def spread(self, option: Option) -> float:
        """The largest of its device work's, its payload's and its cloud work's."""
        split = option.split
        return max(self._device_work[split], self.payloads[split, option.codec].payload, self._cloud_work[split])

    def encode_spread(self, option: Option) -> float:
        """That of encoding alone, where it was measured: what was seen once is believed, but not for ever."""
        return self.payloads[option.split, option.codec].encode

    def link_spread(self, option: Option) -> float:
        """That of the link, where the link matters to the option."""
        return self.link if option.use_s[cost_model.LINK] > LINK_MATTERS * option.busiest_s else 0.0

    def cloud_spread_s(self, option: Option) -> float:
        """How much more cloud time it may take than believed."""
        route = option.split, option.codec
        decode_s = self.costs.payloads[route].decode_s
        tasks_s = max(0.0, option.cloud_busy_s - decode_s)
        return math.hypot(decode_s * self.payloads[route].decode, tasks_s * self._cloud_work[option.split])

    def mixed_cloud_spread_s(self, choice: Choice) -> float:
        """The same of a choice."""
        first_s, second_s = self.cloud_spread_s(choice.first), self.cloud_spread_s(choice.second)
        return choice.share * first_s + (1.0 - choice.share) * second_s

    def hopeful(self, option: Option) -> Option:
        """The option as good as it may be."""
        split, costs = option.split, self.costs
        spread = self.payloads[split, option.codec]
        device = 1.0 - HOPE * self._device_work[split]
        cloud = 1.0 - HOPE * self._cloud_work[split]
        fastest = 1.0 + self.link * (self.link_hope - 1.0)
        size = (1.0 - spread.payload) / fastest  # one never seen may be next to nothing
        spared_s = HOPE * spread.encode * self.reach[split] * costs.payloads[split, option.codec].encode_s
        use_s = list(option.use_s)
        use_s[cost_model.DEVICE] = device * (use_s[cost_model.DEVICE] - spared_s / costs.cores)
        use_s[cost_model.STAGE] = device * (use_s[cost_model.STAGE] - spared_s / (costs.threads * costs.core_share))
        use_s[cost_model.LINK] *= size
        use_s[cost_model.WORKERS] *= cloud
        use_s[cost_model.WINDOW] *= size
        cloud_busy_s = max(0.0, option.cloud_busy_s - HOPE * self.cloud_spread_s(option))
        return option._replace(use_s=tuple(use_s), busiest_s=max(use_s), cloud_busy_s=cloud_busy_s)


def _sums(times_s: Sequence[float], spreads: Sequence[float]) -> list[float]:
    """Spread of the sum of the first 0, 1, ... times."""
    total = square = 0.0
    found = [0.0]
    for time_s, spread in zip(times_s, spreads, strict=True):
        total += time_s
        square += (time_s * spread) ** 2
        found.append(min(1.0, math.sqrt(square) / total) if total else 0.0)
    return found
