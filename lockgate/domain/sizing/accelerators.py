"""Memory of accelerators and of their slices, as the driver reports it: less than the name says.

Sources: NVIDIA's data sheets and MIG user guide (profiles of A100 80GB and H100 80GB); the totals are what CUDA shows with ECC on,
in GiB. An accelerator that is not listed is given in the spec by `hardware.memory_gib`.
"""

from __future__ import annotations

from lockgate.domain.base import Frozen


class Accelerator(Frozen):
    name: str
    memory_gib: float
    """Of one device or slice."""
    compute_capability: str | None
    slice: str | None = None
    """MIG profile, for a part of a device."""

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * 2**30)

    @property
    def batched_tokens(self) -> int:
        """vLLM 0.32's default of `--max-num-batched-tokens` for its API server (`EngineArgs.get_batch_defaults`)."""
        if self.memory_gib >= 160:
            return 16384
        return 8192 if self._large else 2048

    @property
    def sequences(self) -> int:
        """vLLM 0.32's default of `--max-num-seqs`, from the same place."""
        return 1024 if self._large else 256

    @property
    def _large(self) -> bool:
        return self.memory_gib >= 70 and not self.name.startswith("a100")


ACCELERATORS: dict[str, Accelerator] = {
    item.name: item
    for item in (
        Accelerator(name="t4", memory_gib=14.6, compute_capability="7.5"),
        Accelerator(name="v100-32gb", memory_gib=31.7, compute_capability="7.0"),
        Accelerator(name="a10g", memory_gib=22.0, compute_capability="8.6"),
        Accelerator(name="l4", memory_gib=22.0, compute_capability="8.9"),
        Accelerator(name="a100-40gb", memory_gib=39.4, compute_capability="8.0"),
        Accelerator(name="a100-80gb", memory_gib=79.1, compute_capability="8.0"),
        Accelerator(name="l40s", memory_gib=44.4, compute_capability="8.9"),
        Accelerator(name="h100-80gb", memory_gib=79.1, compute_capability="9.0"),
        Accelerator(name="h200", memory_gib=139.8, compute_capability="9.0"),
        Accelerator(name="b200", memory_gib=178.3, compute_capability="10.0"),
        Accelerator(name="mi300x", memory_gib=191.5, compute_capability=None),
    )
}
_MIG_80GB = {
    "1g.10gb": 9.5, "1g.20gb": 19.5, "2g.20gb": 19.5, "3g.40gb": 39.25, "4g.40gb": 39.25, "7g.80gb": 78.75,
}  # fmt: skip
MIG: dict[str, dict[str, float]] = {"a100-80gb": _MIG_80GB, "h100-80gb": _MIG_80GB}
"""GiB of each profile that is offered for serving."""


def accelerator(name: str, memory_gib: float | None = None) -> Accelerator:
    """The one of this name; `memory_gib` where it is given. `ValueError` for an unknown one without."""
    known = ACCELERATORS.get(name)
    if known is None and memory_gib is None:
        listed = ", ".join(sorted(ACCELERATORS))
        raise ValueError(
            f"accelerator {name!r} is not listed ({listed}): give `hardware.memory_gib`"
        )
    if known is None:
        return Accelerator(name=name, memory_gib=memory_gib or 0, compute_capability=None)
    return known if memory_gib is None else known.model_copy(update={"memory_gib": memory_gib})


def slice_of(whole: Accelerator, profile: str) -> Accelerator:
    """A MIG slice of that device. `ValueError` for a profile that it is not known to have."""
    profiles = MIG.get(whole.name, {})
    if profile not in profiles:
        listed = ", ".join(profiles) or "none"
        raise ValueError(f"{whole.name} has no MIG profile {profile!r} here (known: {listed})")
    return whole.model_copy(update={"memory_gib": profiles[profile], "slice": profile})
