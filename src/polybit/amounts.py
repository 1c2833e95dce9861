"""Sizes in bytes as people read them."""


def gigabytes(num_bytes: float) -> str:
    """Of disks and files: `4.15 GB`, `102 MB`, `5 bytes`; a thousand to a step."""
    return _scaled(num_bytes, 1000, ("kB", "MB", "GB"))


def gibibytes(num_bytes: float) -> str:
    """Of memory: `23.50 GiB`, `640 MiB`; 1024 to a step."""
    return _scaled(num_bytes, 1024, ("KiB", "MiB", "GiB"))


def _scaled(num_bytes: float, step: int, units: tuple[str, ...]) -> str:
    """In the largest unit of which there is at least one."""
    for power in range(len(units), 0, -1):
        size = num_bytes / step**power
        if size >= 1:
            return f"{size:.2f} {units[-1]}" if power == len(units) else f"{size:.3g} {units[power - 1]}"
    return f"{num_bytes:.0f} bytes"
