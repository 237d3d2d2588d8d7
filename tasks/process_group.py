"""The network interface of a process group: the one with the address that Ray has for a worker's node.

Owns that choice. Left alone, gloo takes the address that the host's name leads to, which Debian writes into
/etc/hosts as 127.0.1.1: workers of other nodes then find nobody. NCCL chooses for itself.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

INTERFACE = "GLOO_SOCKET_IFNAME"


class NodeTorchConfig(TorchConfig):
    """Ray's, with each worker's network interface set before the group is made."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the backend class; called by Ray Train."""
        return _NodeBackend


class _NodeBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Choose the network interface, in the controller once all workers have started."""
        worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Set the interface of this node's address, unless somebody has set one."""
    node_address = ray.util.get_node_ip_address()
    interface_addresses = (
        interface_name
        for interface_name, addresses in psutil.net_if_addrs().items()
        if node_address in [entry.address for entry in addresses]
    )
    if interface_name := next(interface_addresses, None):
        os.environ.setdefault(INTERFACE, interface_name)
