"""Shared by all tests: how hypothesis behaves on a slow, shared machine."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A time limit per example measures the neighbours of a shared machine; the number of examples is what bounds a test.
# The examples are the same in every run: one that fails is a change's doing, and no run's luck. To look for others:
# pytest --hypothesis-profile search
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("search", settings.get_profile("default"), derandomize=False)
settings.load_profile("default")
