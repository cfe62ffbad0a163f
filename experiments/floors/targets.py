"""The GPUs that a program can be compiled for: what XLA's compiler must know of each, and the peaks that bound it.

Cores, memory, clocks and caches are the facts that XLA publishes of each card (openxla/xla:xla/backends/gpu/
target_config/specs). Peaks are those of NVIDIA's data sheets, without sparsity. Where a sheet has only the sparse one,
it is halved.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One card.

    Attributes:
        name: As the driver calls it.
        compute: Compute capability, as (major, minor).
        cores: Streaming multiprocessors.
        fpus: Lanes of float32 in each of them.
        clock_ghz: Highest clock.
        memory_bytes: What a program can be given.
        bandwidth: Bytes per second from and to the memory.
        l2_bytes: The cache that all cores share.
        shared_bytes: Shared memory of a core.
        block_bytes: Shared memory that one block of threads may ask for.
        threads: Threads that a core holds.
        half, single, eight: Peak FLOP per second of matrix products in bfloat16 or float16; in float32, by TF32; in
            float8 or int8. A card without float8 has that of int8.
        exact: Peak in float32 without TF32, which the precision "highest" asks for.
    """

    name: str
    compute: tuple[int, int]
    cores: int
    fpus: int
    clock_ghz: float
    memory_bytes: int
    bandwidth: float
    l2_bytes: int
    shared_bytes: int
    block_bytes: int
    threads: int = 2048
    half: float
    single: float
    eight: float
    exact: float

    def peak(self, kind: str, *, is_exact: bool = False) -> float:
        """FLOP per second of products of this type of element."""
        if kind.startswith(("f8", "s8", "u8")):
            return self.eight
        return self.half if kind in ("bf16", "f16") else self.exact if is_exact else self.single

    def describe(self) -> str:
        """Write the description that XLA's compiler takes in place of a card (GpuTargetConfigProto, as text)."""
        major, minor = self.compute
        extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {self.threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared_bytes}
  shared_memory_per_block_optin: {self.block_bytes}
  core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {self.bandwidth:.0f} device_memory_size: {self.memory_bytes} l2_cache_size: {self.l2_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
  device_vendor: "NVIDIA Corporation" name: "{self.name}" device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{self.name}"
"""


H100 = Target(
    name="NVIDIA H100 80GB HBM3",  # SXM
    compute=(9, 0),
    cores=132,
    fpus=128,
    clock_ghz=1.98,
    memory_bytes=84_942_979_072,
    bandwidth=3.35232e12,
    l2_bytes=50 * 2**20,
    shared_bytes=228 * 2**10,
    block_bytes=227 * 2**10,
    half=989e12,
    single=494.5e12,
    eight=1979e12,
    exact=67e12,
)
TARGETS = {
    "h100": H100,
    "h200": dataclasses.replace(H100, name="NVIDIA H200 141GB HBM3e", memory_bytes=151_397_597_184, bandwidth=4.8e12),
    "a100": Target(
        name="NVIDIA A100-SXM4-80GB",
        compute=(8, 0),
        cores=108,
        fpus=64,
        clock_ghz=1.41,
        memory_bytes=85_100_068_864,
        bandwidth=2.03904e12,
        l2_bytes=40 * 2**20,
        shared_bytes=164 * 2**10,
        block_bytes=163 * 2**10,
        half=312e12,
        single=156e12,
        eight=624e12,
        exact=19.5e12,
    ),
    "a6000": Target(
        name="NVIDIA RTX A6000",
        compute=(8, 6),
        cores=84,
        fpus=128,
        clock_ghz=1.8,
        memory_bytes=51_041_271_808,
        bandwidth=0.768096e12,
        l2_bytes=6 * 2**20,
        shared_bytes=100 * 2**10,
        block_bytes=99 * 2**10,
        threads=1536,
        half=154.8e12,
        single=77.4e12,
        eight=309.7e12,
        exact=38.7e12,
    ),
    "b200": Target(
        name="NVIDIA B200",
        compute=(10, 0),
        cores=148,
        fpus=128,
        clock_ghz=1.965,
        memory_bytes=191_514_411_008,
        bandwidth=7.67232e12,
        l2_bytes=132_644_864,
        shared_bytes=228 * 2**10,
        block_bytes=227 * 2**10,
        half=2250e12,
        single=1125e12,
        eight=4500e12,
        exact=75e12,
    ),
}
