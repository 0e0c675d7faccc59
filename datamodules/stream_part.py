"""Which sample of a stream a row of a batch is: a pure function of its place, for given processes and workers.

A stream is read by ``processes x workers`` readers. Batch b of a segment is made by worker ``b % workers`` of each
process, as torch's DataLoader deals them out; a resumed loader deals them out from its first batch on, and its workers
take the places of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mmcl.datamodules.sampler import Cut, Draw


class Topology(NamedTuple):
    """Processes, workers of each (at least 1), and batches of an optimizer step."""

    world_size: int
    workers: int
    accumulate: int

    @property
    def readers(self) -> int:
        """How many read a stream together."""
        return self.world_size * self.workers


class StreamPart:
    """What a stream gives to a batch; stands beside `mmcl.datamodules.sampler.Part`.

    Args:
        pool: its number.
        name: of the source.
        rows: which rows of the global batch are its own.
        total: rows of the global batch.
        topology: who reads.
        positions: ``NAME/READER`` -> samples drawn by a reader before the segment.
    """

    def __init__(
        self, pool: int, name: str, rows: Sequence[int], total: int, topology: Topology, positions: Mapping[str, int]
    ) -> None:
        self.pool, self.count = pool, len(rows)
        self._name, self._topology = name, topology
        self._begins = [positions.get(f"{name}/{reader}", 0) for reader in range(topology.readers)]
        place = {
            row: (rank, micro)
            for rank in range(topology.world_size)
            for micro in range(topology.accumulate)
            for row in Cut(rank, topology.world_size, topology.accumulate).rows(total, micro)
        }
        self._counts = [[0] * topology.accumulate for _ in range(topology.world_size)]
        self._places: list[tuple[int, int, int]] = []
        for row in rows:
            rank, micro = place[row]
            self._places.append((rank, micro, self._counts[rank][micro]))
            self._counts[rank][micro] += 1

    def draw(self, step: int, i: int) -> Draw:
        """Sample `i` of this stream in a step: the reader's next one."""
        rank, micro, own = self._places[i]
        batch = step * self._topology.accumulate + micro
        reader = rank * self._topology.workers + batch % self._topology.workers
        return Draw(self.pool, 0, (self._drawn(reader, batch) + own) * self._topology.readers + reader)

    def after(self, steps: int) -> dict[str, int]:
        """``NAME/READER`` -> samples drawn by each reader when so many steps of the segment are over."""
        batches = steps * self._topology.accumulate
        return {f"{self._name}/{reader}": self._drawn(reader, batches) for reader in range(self._topology.readers)}

    def _drawn(self, reader: int, batches: int) -> int:
        """Samples that a reader drew before batch number `batches` of the segment."""
        rank, worker = divmod(reader, self._topology.workers)
        counts, period = self._counts[rank], self._topology.accumulate
        made = len(range(worker, batches, self._topology.workers))
        cycle = [counts[(worker + k * self._topology.workers) % period] for k in range(period)]
        whole, rest = divmod(made, period)
        return self._begins[reader] + whole * sum(cycle) + sum(cycle[:rest])
