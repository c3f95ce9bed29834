import os
import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource
import torch
from opposing_signals.training.allocation import keep_freed_memory

keep_freed_memory()
for _ in range(3):
    tensors = [torch.ones(2**22) for _ in range(40)]  # 640 MiB
    del tensors
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    tensors = [torch.ones(2**22) for _ in range(40)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is nothing to set in other C libraries")
def test_memory_that_was_freed_is_used_again_unless_the_environment_says_otherwise():
    def faults(**variables: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        command = [sys.executable, "-c", PAGE_FAULTS]
        return int(subprocess.check_output(command, text=True, env=environment | variables))

    assert faults() < 0.05 * faults(MALLOC_TRIM_THRESHOLD_="131072")
