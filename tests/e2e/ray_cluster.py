"""A real Ray cluster of several machines' worth of nodes, as a program of its own: it ends when its standard input does.

    python -m tests.e2e.ray_cluster FOLDER

prints its address, then takes one order a line and answers each with a line: ``add NAME [PYTHONPATH]`` starts a node with
one CPU and a home of its own below FOLDER, ``lose NAME`` kills one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20  # Ray takes no less


def main(folder: Path, scratch: str) -> None:
    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes a cluster's address there, whatever temp_dir says
    small = {"object_store_memory": STORE_BYTES, "include_dashboard": False, "temp_dir": scratch}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "num_cpus": 0})
    nodes = {}
    print(cluster.address, flush=True)  # noqa: T201 - for whoever started this
    try:
        for line in sys.stdin:
            match line.split():
                case ["add", name, *path]:
                    env = {"HOME": str(folder / name)} | ({"PYTHONPATH": path[0]} if path else {})
                    nodes[name] = cluster.add_node(num_cpus=1, env_vars=env, **small)
                case ["lose", name]:
                    cluster.remove_node(nodes.pop(name), allow_graceful=False)
            print("done", flush=True)  # noqa: T201
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:  # a short name: sockets lie in it
        main(Path(sys.argv[1]), scratch)
