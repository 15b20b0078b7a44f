"""What this process has open."""

import gc
from pathlib import Path


def open_descriptors():
    """Return how many descriptors there are, without what nobody holds any more."""
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))
