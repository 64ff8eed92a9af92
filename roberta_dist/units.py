"""Units: binary sizes, and numbers written for people."""

from __future__ import annotations

KIB = 1024
MIB = 1024**2
GIB = 1024**3


def human_bytes(count: float) -> str:
    """Bytes in binary units: `human_bytes(3 * 1024**2)` is `'3.0 MiB'`."""
    for unit, size in (("TiB", 1024**4), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def human_count(count: float) -> str:
    """A count in decimal units: `human_count(1_234_567)` is `'1.23M'`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.0f}"


def human_duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: `human_duration(3725)` is `'1h02m05s'`."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m{rest:02d}s"
    return f"{minutes}m{rest:02d}s" if minutes else f"{seconds:.1f}s"
