"""The memory that a process has taken."""

import sys


def process_peak_bytes() -> int:
    """The most memory that this process has taken so far.

    psutil knows the peak on Windows alone, `resource` everywhere else.
    """
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
