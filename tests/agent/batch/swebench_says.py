"""What the ``swebench`` package says of some logs, as a program of its own: it loads much, and prints on the way.

    python tests/agent/batch/swebench_says.py PLAN LOGS

PLAN is a JSON file ``{"rows": [a row in SWE-bench's shape], "predictions": {id: prediction}}``; LOGS the folder in which
``<id>/test_output.txt`` lies for each prediction whose patch applied. Writes ``LOGS/said.json``: each task's report
(``get_eval_report``) and the one over all (``make_run_report``).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from swebench.harness.constants import RUN_EVALUATION_LOG_DIR
from swebench.harness.grading import get_eval_report
from swebench.harness.reporting import make_run_report
from swebench.types import TestSpec

RUN = "compared"


def main(plan: Path, logs: Path) -> None:
    asked = json.loads(plan.read_text())
    os.chdir(logs)  # the package reads and writes below the working directory
    reports = {}
    for row in asked["rows"]:
        name = row["instance_id"]
        spec = TestSpec(
            name, "", [], row["repo"], "", row["FAIL_TO_PASS"], row["PASS_TO_PASS"], "parse_log_pytest", "pass_and_fail"
        )
        log = logs / name / "test_output.txt"
        prediction = asked["predictions"].get(name)
        if prediction is not None and prediction["model_patch"] and log.exists():
            reports[name] = get_eval_report(spec, prediction, str(log), include_tests_status=True)
            place = RUN_EVALUATION_LOG_DIR / RUN / prediction["model_name_or_path"] / name
            place.mkdir(parents=True)
            (place / "report.json").write_text(json.dumps(reports[name]))
    whole = make_run_report(asked["predictions"], asked["rows"], RUN)
    (logs / "said.json").write_text(json.dumps({"reports": reports, "summary": json.loads(whole.read_text())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
