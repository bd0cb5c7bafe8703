"""Shared by all tests: what must not depend on where and how they are started."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A time limit per example measures the neighbours of a shared machine; the number of examples is what bounds a test.
# The examples are the same in every run: one that fails is a change's doing, and no run's luck. To look for others:
# pytest --hypothesis-profile search
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("default"), derandomize=False)
settings.load_profile("default")

# Nor do a person's settings of git have a say: signed commits, say, or another name for the first branch.
os.environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

# A script's shell has what it starts in the background ignore Ctrl-C, and nohup has everything ignore SIGHUP.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM})
