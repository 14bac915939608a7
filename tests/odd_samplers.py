"""Samplers that do what samplers should not, or tell how they were called; importable, so that a
study's worker process can make them.
"""

import os
import time
from typing import ClassVar

import dimod
import numpy as np


class Odd(dimod.Sampler):
    """Random states, honestly."""

    parameters: ClassVar[dict] = {"num_reads": [], "seed": []}
    properties: ClassVar[dict] = {}

    def sample(self, bqm, num_reads=1, seed=None):
        states = np.random.default_rng(seed).integers(0, 2, (num_reads, bqm.num_variables))
        return dimod.SampleSet.from_samples_bqm((states, range(bqm.num_variables)), bqm)


class Crash(Odd):
    """Takes its process along."""

    def sample(self, bqm, num_reads=1, seed=None):
        os._exit(3)


class Raise(Odd):
    def sample(self, bqm, num_reads=1, seed=None):
        raise RuntimeError("boom")


class Hang(Odd):
    """Warms up well, and never returns from its second call."""

    calls = 0

    def sample(self, bqm, num_reads=1, seed=None):
        self.calls += 1
        while self.calls >= 2:
            time.sleep(0.1)
        return super().sample(bqm, num_reads, seed)


class Liar(Odd):
    """Ignores the count and reports energies far below the truth."""

    def sample(self, bqm, num_reads=1, seed=None):
        states = np.ones((num_reads, bqm.num_variables), np.int8)
        states[:, 0] = 0
        return dimod.SampleSet.from_samples(
            (states, range(bqm.num_variables)), energy=np.full(num_reads, -1e9), vartype="BINARY"
        )


class SlowStart(Odd):
    """The first call of a process takes a while, as compiling does."""

    first = True

    def sample(self, bqm, num_reads=1, seed=None):
        if SlowStart.first:
            time.sleep(0.6)
        SlowStart.first = False
        return super().sample(bqm, num_reads, seed)


class NeverReady(Odd):
    def sample(self, bqm, num_reads=1, seed=None):
        time.sleep(60)


class TellsThreads(Odd):
    """Raises with the most threads that any library here would use."""

    def sample(self, bqm, num_reads=1, seed=None):
        import torch
        from threadpoolctl import threadpool_info

        pools = [pool["num_threads"] for pool in threadpool_info()]
        raise RuntimeError(f"threads {max([torch.get_num_threads(), *pools])}")


class TellsPid(Odd):
    """Raises with the number of the process that it runs in."""

    def sample(self, bqm, num_reads=1, seed=None):
        raise RuntimeError(f"pid {os.getpid()}")


class Takes(Odd):
    """Computes or waits so many seconds, from its second call on."""

    parameters: ClassVar[dict] = {"num_reads": [], "seed": [], "work": [], "wait": []}
    calls = 0

    def sample(self, bqm, num_reads=1, seed=None, work=0.0, wait=0.0):
        self.calls += 1
        if self.calls > 1:
            time.sleep(wait)
            end = time.process_time() + work
            while time.process_time() < end:
                pass
        return super().sample(bqm, num_reads, seed)


class Bad(dimod.Sampler):
    """Misbehaves in every ``every``-th call, in the next of its ways; else it guesses."""

    properties: ClassVar = {}
    parameters: ClassVar = {"seed": []}

    def __init__(self, ways, every=3):
        self.ways, self.every, self.calls = tuple(ways), every, 0

    def sample(self, bqm, seed=None):
        self.calls += 1
        size = bqm.num_variables
        states = np.random.default_rng(seed).integers(0, 2, (20, size))
        if self.calls % self.every == 0:
            way = self.ways[self.calls // self.every % len(self.ways)]
            if way == "raise":
                raise RuntimeError("no luck")
            if way == "hang":
                time.sleep(3600)
            if way == "crash":
                os.abort()
            if way == "sizes":
                states = states[:, :-1]
                return dimod.SampleSet.from_samples((states, range(size - 1)), "BINARY", 0.0)
            if way == "nan":
                return dimod.SampleSet.from_samples(states, "BINARY", np.full(20, np.nan))
            if way == "infeasible":
                states[:] = 1
            if way == "nothing":
                return None
        return dimod.SampleSet.from_samples_bqm((states, range(size)), bqm)
