"""Memory that was given back is used again without new pages."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from osteograde.models import device

getattr(device, sys.argv[1])()
size = int(sys.argv[2]) << 20

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(size, np.uint8)[:: 4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel for its page faults")
@pytest.mark.parametrize(("how", "megabytes"), [("keep_freed_memory", 16), ("keep_all_freed_memory", 200)])
def test_the_second_array_of_a_size_touches_no_new_page(how, megabytes):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(megabytes)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20
