"""Memory that was given back is there for the next picture: page faults, as the kernel counts."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy as np
from app.serving.memory import keep_freed

if sys.argv[1] == "kept":
    assert keep_freed() and keep_freed()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def pictures(count):
    for _ in range(count):
        # Eight pictures of 1024 x 1024 in flight, done in the order in which they came.
        held = [np.ones((1024, 1024, 3), np.uint8) for _ in range(8)]
        while held:
            held.pop(0)

pictures(2)
before = faults()
pictures(10)
print((faults() - before) / 80)
"""


def faults_of_a_picture(mode: str) -> float:
    command = [sys.executable, "-c", COUNT, mode]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_next_picture_finds_the_memory_of_the_last() -> None:
    # 768 pages each.
    assert faults_of_a_picture("left") > 100
    assert faults_of_a_picture("kept") < 10
