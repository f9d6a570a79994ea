"""GPU names as drivers give them, and their peaks: never a neighbour's."""

import pytest

from cos_core.training.flops import peak_flops

NAMES = {
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "A100-PCIE-40GB": 312e12,
    "NVIDIA A800-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H800": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA GH200 480GB": 989e12,
    "NVIDIA A40": 150e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L4": 121e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "Tesla V100-SXM2-32GB": 125e12,
    "Tesla V100S-PCIE-32GB": 125e12,
    "NVIDIA RTX A4000": None,
    "NVIDIA RTX A4500": None,
    "NVIDIA RTX 4000 Ada Generation": None,
    "NVIDIA A10G": None,
    "NVIDIA A100X": None,
    "NVIDIA A1000": None,
    "NVIDIA H20": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None,
    "NVIDIA GeForce RTX 4090 D": None,
    "Tesla T4": None,
    "AMD EPYC 7763": None,
    "": None,
}


@pytest.mark.parametrize(("name", "peak"), NAMES.items())
def test_peaks(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
