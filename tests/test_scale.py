"""docs/rayjob.yaml is what the program takes, and benchmarks/scale.py adds up where that can be told by hand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from agent.cli.tasks import run
from benchmarks.scale import LARGE, SMALL, Card, World, between, simulate

ROOT = Path(__file__).resolve().parent.parent
JOB: dict[str, Any] = YAML(typ="safe").load(ROOT / "docs/rayjob.yaml")
CLUSTER = JOB["spec"]["rayClusterSpec"]
PODS = [group["template"]["spec"] for group in (CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"])]
ALONE = World(turns=1, answer_tokens=100, result_tokens=1, first_tokens=1024, tool_s=0.001)
FLAT = Card("flat", ((1, 100), (2, 200), (64, 6400)), ((300, 0.0), (2048, 0.0), (8192, 0.0)), 0.0, 10**9)


def test_the_job_runs_a_command_that_there_is() -> None:
    assert (JOB["apiVersion"], JOB["kind"]) == ("ray.io/v1", "RayJob")
    words = shlex.split(JOB["spec"]["entrypoint"])
    assert words[:3] == ["agent", "tasks", "run"]
    given = run.make_context("run", words[3:]).params
    assert given["engine"] == "ray"
    assert given["paths"][0].startswith("hf:")
    assert str(given["out"]) in {mount["mountPath"] for mount in PODS[0]["containers"][0]["volumeMounts"]}
    (group,) = CLUSTER["workerGroupSpecs"]
    assert given["jobs"] == group["maxReplicas"] * int(group["rayStartParams"]["num-cpus"])
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_all_machines_have_the_same_program_and_the_tested_ray() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert CLUSTER["rayVersion"] == pinned[1]
    assert f"rayproject/ray:{pinned[1]}-" in (ROOT / "docs/scale.md").read_text()
    assert len({pod["containers"][0]["image"] for pod in PODS}) == 1


def test_every_mount_has_its_volume_and_no_key_is_written_down() -> None:
    for pod in PODS:
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for each in pod["containers"] for mount in each["volumeMounts"]} == volumes
        for entry in (entry for each in pod["containers"] for entry in each.get("env", [])):
            assert ("value" in entry) != ("KEY" in entry["name"] or "TOKEN" in entry["name"])
    worker, engine = PODS[1]["containers"]
    (host,) = (entry["value"] for entry in worker["env"] if entry["name"] == "DOCKER_HOST")
    assert f"--host={host}" in engine["args"]


def test_one_worker_alone_takes_the_time_of_its_tokens() -> None:
    result = simulate(FLAT, ALONE, 2000, 1, 1, start_s=1.0, turn_s=0.5)
    # A task: 1 s to start, 100 tokens at 100 a second on average, then 0.5 s; a few tasks have a second turn.
    assert result.hours * 3600 / 2000 == pytest.approx(2.5 + 0.135 * 1.5, rel=0.1)
    assert result.waited_s == pytest.approx(1.0, rel=0.1)


def test_workers_share_a_card_and_endpoints_share_workers() -> None:
    one = simulate(FLAT, ALONE, 2000, 1, 1, 0.0, 0.0)
    assert simulate(FLAT, ALONE, 2000, 10, 1, 0.0, 0.0).hours == pytest.approx(one.hours / 10, rel=0.1)
    # Each stream of a full card is as fast as one alone; what has no place there waits.
    assert simulate(FLAT, ALONE, 2000, 128, 1, 0.0, 0.0).waited_s == pytest.approx(2 * one.waited_s, rel=0.15)
    assert simulate(FLAT, ALONE, 2000, 128, 2, 0.0, 0.0).waited_s == pytest.approx(one.waited_s, rel=0.15)


def test_contexts_that_do_not_fit_cost_their_prompts_again() -> None:
    world = World(turns=20, first_tokens=4000)
    fits = simulate(SMALL, world, 100, 32, 1, 0.0, 0.0)
    small = Card("small", SMALL.decode, SMALL.prefill, SMALL.context_s, 100_000)
    assert simulate(small, world, 100, 32, 1, 0.0, 0.0).hours > 1.2 * fits.hours


def test_it_is_fed_with_what_the_results_say() -> None:
    """A number that is measured again is to be simulated with again."""
    told = (ROOT / "benchmarks/RESULTS.md").read_text()
    engine = told.split("## The bundled runtime as a whole")[1].split("\n## ")[0]
    kernels = told.split("## Kernels of the bundled runtime")[1].split("\n## ")[0]
    for streams, speed in SMALL.decode:
        row = next(line for line in engine.splitlines() if line.startswith(f"| 20b, batch {streams}, 1k |"))
        assert f"{speed:,}" in row.split("|")[3]
    for (_, time_s), row in zip(
        SMALL.prefill, ("30,000 cached and 300 new", "2,048 unknown", "8,192 unknown"), strict=True
    ):
        assert f"| {time_s * 1000:.1f} [" in next(line for line in engine.splitlines() if row in line)
    assert "| 120b, batch 8 / 32 / 64, 1k | " + " / ".join(f"{speed:,}" for _, speed in LARGE.decode[1:]) in kernels
    speeds = " / ".join(f"{tokens / time_s:,.0f}" for tokens, time_s in LARGE.prefill)
    assert f"| 120b, prefill 300 / 2k / 8k | {speeds} |" in kernels


def test_curves_go_through_what_was_measured() -> None:
    for card in (SMALL, LARGE):
        for streams, speed in card.decode:
            assert streams / card.step_s(streams, 1024 * streams) == pytest.approx(speed)
        for tokens, time_s in card.prefill:
            assert card.prefill_s(tokens) == pytest.approx(time_s)
        assert card.prefill_s(16_384) == pytest.approx(card.prefill[-1][1] * 2, rel=0.15)
    assert [between(((1, 10), (3, 20)), at) for at in (0, 1, 2, 3, 9)] == [10, 10, 15, 20, 20]
    assert 1 / SMALL.step_s(1, 32_768) == pytest.approx(514, rel=0.01)
