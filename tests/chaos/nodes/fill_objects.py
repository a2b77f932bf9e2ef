"""Takes all room of every node's object store: `fill_objects.py ADDRESS`; holds it till killed."""

import sys
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PIECE, NUM_PIECES = 16 * 2**20, 8  # in all 1.6 times what a store holds; the rest is spilled


class Holder:
    def __init__(self) -> None:
        self.held = [ray.put(np.ones(PIECE, np.uint8)) for _ in range(NUM_PIECES)]

    def look(self) -> int:
        return len(self.held)


ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
holders: list[Any] = []
for node in ray.nodes():
    if node["Alive"]:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        options = {"num_cpus": 0, "scheduling_strategy": where}
        holders.append(ray.remote(Holder).options(**options).remote())
ray.wait([holder.look.remote() for holder in holders], num_returns=len(holders), timeout=30)
print("full", flush=True)  # noqa: T201
sys.stdin.read()
