"""GPU types a spec may name, with the figures that the memory and time estimates need."""

from dataclasses import dataclass

_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU type, by its data sheet."""

    name: str
    """Canonical name, as a spec writes it."""

    memory_bytes: int
    """Device memory in bytes, by the data sheet's decimal gigabytes; drivers report slightly more."""

    bf16_tflops_dense: float
    """Peak bfloat16 tensor-core rate with float32 accumulation and without sparsity, in 10^12 FLOP/s."""

    has_fp8: bool
    """Whether its tensor cores multiply 8-bit floats (see `quantized.FP8_CAPABILITY`)."""

    driver_names: tuple[str, ...]
    """What the driver calls it (`torch.cuda.get_device_name`). Cards of the same name with other rates, such as the
    H100 PCIe and the H100 NVL, are left out: the peak is for these."""


# Data sheets print the rate with 2:4 sparsity for several of these; the dense rate is half of that.
_ALL = (
    # NVIDIA H200 Tensor Core GPU data sheet, SXM: 141 GB HBM3e, BF16 1,979 TFLOPS with sparsity.
    Gpu(name="H200", memory_bytes=141 * _GB, bf16_tflops_dense=989.0, has_fp8=True, driver_names=("NVIDIA H200",)),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM: 80 GB HBM3, BF16 1,979 TFLOPS with sparsity.
    Gpu(
        name="H100",
        memory_bytes=80 * _GB,
        bf16_tflops_dense=989.0,
        has_fp8=True,
        driver_names=("NVIDIA H100 80GB HBM3",),
    ),
    # NVIDIA A100 Tensor Core GPU data sheet: BF16 312 TFLOPS, 624 with sparsity; 40 GB HBM2, 80 GB HBM2e.
    Gpu(
        name="A100-80GB",
        memory_bytes=80 * _GB,
        bf16_tflops_dense=312.0,
        has_fp8=False,
        driver_names=("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    ),
    Gpu(
        name="A100-40GB",
        memory_bytes=40 * _GB,
        bf16_tflops_dense=312.0,
        has_fp8=False,
        driver_names=("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
    ),
    # NVIDIA L40S data sheet: 48 GB GDDR6, BF16 362.05 TFLOPS, 733 with sparsity.
    Gpu(name="L40S", memory_bytes=48 * _GB, bf16_tflops_dense=362.05, has_fp8=True, driver_names=("NVIDIA L40S",)),
    # NVIDIA A10 data sheet: 24 GB GDDR6, BF16 125 TFLOPS, 250 with sparsity.
    Gpu(name="A10", memory_bytes=24 * _GB, bf16_tflops_dense=125.0, has_fp8=False, driver_names=("NVIDIA A10",)),
    # NVIDIA L4 data sheet: 24 GB GDDR6, BF16 242 TFLOPS with sparsity.
    Gpu(name="L4", memory_bytes=24 * _GB, bf16_tflops_dense=121.0, has_fp8=True, driver_names=("NVIDIA L4",)),
    # NVIDIA Ada GPU architecture white paper, appendix A: BF16 165.2 TFLOPS, 330.4 with sparsity.
    Gpu(
        name="RTX4090",
        memory_bytes=24 * _GB,
        bf16_tflops_dense=165.2,
        has_fp8=True,
        driver_names=("NVIDIA GeForce RTX 4090",),
    ),
    # NVIDIA Ampere GA102 white paper, appendix A: BF16 71 TFLOPS, 142 with sparsity.
    Gpu(
        name="RTX3090",
        memory_bytes=24 * _GB,
        bf16_tflops_dense=71.0,
        has_fp8=False,
        driver_names=("NVIDIA GeForce RTX 3090",),
    ),
)

GPUS: dict[str, Gpu] = {gpu.name: gpu for gpu in _ALL}
"""GPU types by canonical name."""

_BY_FOLDED_NAME = {name.casefold(): gpu for name, gpu in GPUS.items()}


def find_gpu(name: str) -> Gpu | None:
    """Look a GPU type up by name, whatever its case; None if the catalog does not hold it."""
    return _BY_FOLDED_NAME.get(name.casefold())


def gpu_by_driver_name(name: str) -> Gpu | None:
    """Look a GPU type up by what its driver calls it; None if the catalog does not hold exactly that card."""
    return next((gpu for gpu in _ALL if name in gpu.driver_names), None)
