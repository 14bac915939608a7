"""What the simulator assumes about machines. Every number says where it is from.

Peak figures are the makers' data sheets; shares of them that are reached, and prices, are
assumptions, and the first thing to change where better is known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What does the passes.

    Attributes:
        name: of the device.
        flops: per second that passes reach: a sheet's peak times the share that is assumed.
        single: the same in single precision, outside the matrix units.
        bandwidth: of its memory, bytes per second that are reached.
        memory: bytes.
        to_host: bytes per second to the host's memory.
    """

    name: str
    flops: float
    single: float
    bandwidth: float
    memory: float
    to_host: float


@dataclass(frozen=True)
class Link:
    """Bytes per second and seconds per message."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Cluster:
    """Equal nodes.

    Attributes:
        name: of the cluster.
        device: of which each node has ``devices``.
        nodes: how many.
        devices: of each node.
        inside: between the devices of a node.
        between: nodes.
        cores: of a node, that solve blocks.
        core_speed: one core's speed, as a multiple of the one that was measured.
        host_bandwidth: of a node's memory, bytes per second.
        host_memory: of a node, bytes.
        price: of a node, dollars an hour.
    """

    name: str
    device: Device
    nodes: int
    devices: int
    inside: Link
    between: Link
    cores: int
    core_speed: float
    host_bandwidth: float
    host_memory: float
    price: float

    @property
    def size(self) -> int:
        """Devices in all: ranks of the passes."""
        return self.nodes * self.devices

    @property
    def exchange(self) -> Link:
        """What an exchange among all devices goes over: the slowest link on its way."""
        return self.inside if self.nodes == 1 else self.between


# 165 TFLOP/s of FP16 with FP32 sums, 82.6 of FP32, 1,008 GB/s, 24 GB: NVIDIA, "Ada GPU
# architecture", GeForce RTX 4090. Assumed: 40 % of the operations, 70 % of the bandwidth, PCIe 4.0
# x16 at 20 of 32 GB/s.
RTX_4090 = Device("RTX 4090", 0.4 * 165e12, 0.4 * 82.6e12, 0.7 * 1.008e12, 24e9, 20e9)
# 989 TFLOP/s of dense BF16, 67 of FP32, 3.35 TB/s, 80 GB: NVIDIA, "H100 Tensor Core GPU" data
# sheet, SXM. Assumed: 40 % of the operations, 70 % of the bandwidth, PCIe 5.0 x16 at 40 of 64 GB/s.
H100 = Device("H100", 0.4 * 989e12, 0.4 * 67e12, 0.7 * 3.35e12, 80e9, 40e9)
# Assumed: one core of a server of 2024 is 1.5 x the shared core that was measured; memory of two
# sockets at 300 GB/s reached. Prices are assumptions of what such machines are rented for.
_SERVER = {"core_speed": 1.5, "host_bandwidth": 300e9}

ONE_GPU = Cluster(
    "one 24 GB GPU",
    RTX_4090,
    nodes=1,
    devices=1,
    inside=Link(20e9, 10e-6),
    between=Link(20e9, 10e-6),
    cores=16,
    core_speed=1.5,
    host_bandwidth=60e9,  # Assumed: two channels of DDR5.
    host_memory=128e9,
    price=0.5,
)
# NVLink 900 GB/s both ways together: the data sheet above; half of it, at 80 %.
EIGHT_GPUS = Cluster(
    "eight H100",
    H100,
    nodes=1,
    devices=8,
    inside=Link(0.8 * 450e9, 10e-6),
    between=Link(0.8 * 450e9, 10e-6),
    cores=96,
    host_memory=2e12,
    price=24.0,
    **_SERVER,
)
# Assumed: 100 Gb/s Ethernet for each GPU at 80 %, 50 us.
RAY_CLUSTER = Cluster(
    "Ray, 8 nodes of eight H100",
    H100,
    nodes=8,
    devices=8,
    inside=Link(0.8 * 450e9, 10e-6),
    between=Link(0.8 * 12.5e9, 50e-6),
    cores=96,
    host_memory=2e12,
    price=24.0,
    **_SERVER,
)
