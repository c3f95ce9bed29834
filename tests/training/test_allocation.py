import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource
import torch
from opposing_signals.training.allocation import keep_freed_memory

if {kept}:
    keep_freed_memory()
for _ in range(3):
    tensors = [torch.ones(2**24) for _ in range(4)]
    del tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    tensors = [torch.ones(2**24) for _ in range(4)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set in other C libraries")
def test_memory_that_was_freed_is_used_again():
    def faults(kept: bool) -> int:
        return int(subprocess.check_output([sys.executable, "-c", PAGE_FAULTS.format(kept=kept)], text=True))

    assert faults(kept=True) < 0.05 * faults(kept=False)
