"""`python -m runtime`: as a person calls it, over tiny checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from runtime import cli
from runtime.commands import Place
from runtime.errors import RuntimeFault
from runtime.kernels.reference import reference_kernels
from runtime.model.checkpoint import load_weights, open_checkpoint
from runtime.model.tiny import tiny_config, write_tiny
from runtime.model.transformer import Transformer, build_transformer
from runtime.model.weights import Layout
from tests.runtime.ragged import run_chunks

IDS = torch.randint(0, 256, (150,), generator=torch.Generator().manual_seed(9)).tolist()


@pytest.fixture(autouse=True)
def _allocator_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set the allocator in the environment; here it is set already, so that nothing is left behind."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")


@pytest.fixture
def ids_file(tmp_path: Path) -> Path:
    path = tmp_path / "ids.txt"
    path.write_text("".join(f"{token}\n" for token in IDS), encoding="ascii")
    return path


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("chunk", ["256", "37"])
def test_logits_are_those_of_the_model(
    layout: Layout, chunk: str, tiny_checkpoints: dict[Layout, Path], tiny_model: Transformer, ids_file: Path
) -> None:
    out = ids_file.with_name("logits.npy")
    arguments = ["logits", str(tiny_checkpoints[layout]), "--ids", str(ids_file), "--out", str(out)]
    assert cli.main([*arguments, "--chunk-tokens", chunk]) == 0
    found = np.load(out)
    assert (found.dtype, found.shape) == (np.float32, (150, 256))
    expected = run_chunks(tiny_model, IDS, [150])
    assert np.linalg.norm(found - expected.numpy()) < 1e-5 * np.linalg.norm(expected.numpy())
    assert [path.name for path in out.parent.iterdir() if "part" in path.name] == []


def test_a_place_that_cannot_be_written_is_named(
    tiny_checkpoints: dict[Layout, Path], ids_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ids_file.parent / "no" / "folder" / "logits.npy"
    arguments = ["logits", str(tiny_checkpoints[Layout.ORIGINAL]), "--ids", str(ids_file), "--out", str(out)]
    assert cli.main(arguments) == cli.FAULT
    assert f"--out {out} cannot be written" in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing_behind(
    tiny_checkpoints: dict[Layout, Path], ids_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.commands.forward", interrupted)
    out = ids_file.with_name("logits.npy")
    arguments = ["logits", str(tiny_checkpoints[Layout.ORIGINAL]), "--ids", str(ids_file), "--out", str(out)]
    assert cli.main(arguments) == cli.INTERRUPTED
    assert [path.name for path in out.parent.iterdir() if path.is_file()] == ["ids.txt"]


def test_logits_in_bf16_are_bf16s(tiny_checkpoints: dict[Layout, Path], ids_file: Path) -> None:
    out = ids_file.with_name("logits.npy")
    path = tiny_checkpoints[Layout.ORIGINAL]
    arguments = ["logits", str(path), "--ids", str(ids_file), "--out", str(out)]
    assert cli.main([*arguments, "--dtype", "bf16", "--kernels", "reference", "--device", "cpu"]) == 0
    checkpoint = open_checkpoint(path)
    weights = load_weights(checkpoint, torch.device("cpu"), torch.bfloat16)
    model = build_transformer(checkpoint.config, weights, reference_kernels(), positions=150)
    assert np.array_equal(np.load(out), run_chunks(model, IDS, [150], page_size=64).numpy())


def test_generate_prints_the_likeliest_ids(
    tiny_checkpoints: dict[Layout, Path], tiny_model: Transformer, ids_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tiny_checkpoints[Layout.HUGGING_FACE])
    assert cli.main(["generate", path, "--ids", str(ids_file), "--max-tokens", "6", "--temperature", "0"]) == 0
    shown = capsys.readouterr()
    expected = list(IDS)
    for _ in range(6):
        expected.append(int(run_chunks(tiny_model, expected, [len(expected)])[-1].argmax()))
    assert [int(line) for line in shown.out.split()] == expected[150:]
    assert shown.err.startswith("length after 6 tokens in ")


def test_generate_stops_where_it_is_told_and_repeats_with_a_seed(
    tiny_checkpoints: dict[Layout, Path], ids_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", str(tiny_checkpoints[Layout.ORIGINAL]), "--ids", str(ids_file), "--seed", "11"]
    runs = []
    for _ in range(2):
        assert cli.main([*arguments, "--max-tokens", "12", "--top-p", "0.9"]) == 0
        runs.append(capsys.readouterr().out.split())
    assert runs[0] == runs[1]
    assert len(runs[0]) == 12
    stop = runs[0][4]
    assert cli.main([*arguments, "--max-tokens", "12", "--top-p", "0.9", "--stop", stop, "--stop", "999"]) == 0
    shown = capsys.readouterr()
    assert shown.out.split() == runs[0][: runs[0].index(stop) + 1]
    assert shown.err.startswith("stop after ")


def test_the_ids_may_come_from_stdin_and_the_process_is_a_real_one(tmp_path: Path) -> None:
    write_tiny(tmp_path / "model")
    run = subprocess.run(
        [sys.executable, "-m", "runtime", "generate", "model", "--ids", "-", "--max-tokens", "2", "--temperature", "0"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(cli.__file__).resolve().parent.parent), "PATH": ""},
        input="5\n\n 17 \n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(run.stdout.split()) == 2


def test_triton_without_a_gpu_is_refused_in_one_line(tiny_checkpoints: dict[Layout, Path]) -> None:
    """In a process of its own: the tests of the kernels switch this one's Triton to its interpreter."""
    arguments = ["generate", str(tiny_checkpoints[Layout.ORIGINAL]), "--ids", "-", "--kernels", "triton"]
    run = subprocess.run(
        [sys.executable, "-m", "runtime", *arguments, "--device", "cpu"],
        cwd=Path(cli.__file__).resolve().parent.parent,
        env={"PATH": ""},
        input="5\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == cli.FAULT
    assert run.stderr == "runtime: the Triton kernels do not run on cpu, only on CUDA GPUs: use 'reference'\n"


def test_tuning_without_a_gpu_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(["tune", "--quick", "--cache-dir", str(tmp_path)]) == cli.FAULT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "runtime: there is nothing to tune here: cpu is not a CUDA GPU, and only Triton kernels have sizes to choose\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_tuning_loads_no_package_but_pytorch_triton_and_numpy() -> None:
    """It runs where nothing of the agent is installed: whatever else of ours needs a package is not imported."""
    code = (
        "import sys, runtime.cli\nruntime.cli.main(['tune'])\n"
        "sys.exit(' '.join(sys.modules.keys() & {'safetensors', 'transformers', 'huggingface_hub', 'httpx2', 'click'}) or 0)"
    )
    environment = {"PATH": "", "CUDA_VISIBLE_DEVICES": ""}
    root = Path(cli.__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.startswith("runtime: there is nothing to tune here")


def test_bench_says_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "tiny", "--prompt-tokens", "40", "--tokens", "5", "--batch", "2", "--repeats", "2"]
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert {key: report[key] for key in ("model", "device", "dtype", "kernels", "batch")} == {
        "model": "tiny",
        "device": "cpu",
        "dtype": "float32",
        "kernels": "reference",
        "batch": 2,
    }
    for rate in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert 0 < report[rate]["lowest"] <= report[rate]["median"] <= report[rate]["highest"]


def test_bench_takes_a_checkpoint_too(tiny_checkpoints: dict[Layout, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tiny_checkpoints[Layout.ORIGINAL])
    assert cli.main(["bench", path, "--prompt-tokens", "4", "--tokens", "1", "--repeats", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["decode_tokens_per_s"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\n2\nthree\n", "line 3: 'three' is not an id from 0 to 255"),
        ("1\n256\n", "line 2: '256' is not an id"),
        ("9" * 5000, f"line 1: '{'9' * 40}' is not an id"),
        ("-1\n", "line 1: '-1'"),
        ("1 2\n", "line 1: '1 2'"),
        ("\n\n", "contains no token ids"),
        ("é\n", "cannot be read as token ids"),
    ],
)
def test_wrong_ids_are_named(
    text: str, message: str, tiny_checkpoints: dict[Layout, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(text, encoding="utf-8")
    out = tmp_path / "logits.npy"
    arguments = ["logits", str(tiny_checkpoints[Layout.ORIGINAL]), "--ids", str(path), "--out", str(out)]
    assert cli.main(arguments) == cli.FAULT
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--device", "cuda"], "finds no CUDA device here"),
        (["--device", "mps"], "finds no Metal device here"),
        (["--device", "gpu"], "no such device"),
        (["--device", "meta"], "--device meta: the runtime does not support it; use cpu, cuda or mps"),
        (["--max-tokens", "131072"], "the model's window is 131072"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--ids", "/nowhere"], "cannot be read as token ids"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    extra: list[str],
    message: str,
    tiny_checkpoints: dict[Layout, Path],
    ids_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    arguments = ["generate", str(tiny_checkpoints[Layout.ORIGINAL]), "--ids", str(ids_file), *extra]
    assert cli.main(arguments) == cli.FAULT
    shown = capsys.readouterr().err
    assert shown.startswith("runtime: ")
    assert message in shown
    assert shown.count("\n") == 1


def test_a_checkpoint_that_is_not_there_is_named(ids_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("/no/such/folder", "someone/never-pulled"):
        assert cli.main(["generate", name, "--ids", str(ids_file)]) == cli.FAULT
        assert f"{name} is neither a folder nor a completely downloaded model" in capsys.readouterr().err


def test_a_model_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.model.memory.free_bytes", lambda _: 20 << 30)
    assert cli.main(["bench", "120b", "--device", "cpu", "--dtype", "bf16"]) == cli.FAULT
    assert "gpt-oss-20b in bf16 fits" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["logits"], ["bench", "tiny", "--batch", "0"], ["logits", "x", "--ids", "y"]]
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_help_loads_nothing() -> None:
    code = "import sys, runtime.cli\ntry: runtime.cli.main(['--help'])\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_demonstration_sizes_hold_the_whole_vocabulary() -> None:
    from runtime.model.memory import weights_bytes
    from runtime.model.tiny import HARMONY_VOCABULARY

    assert weights_bytes(tiny_config(vocabulary=HARMONY_VOCABULARY), torch.bfloat16) < 60 << 20


def test_a_gpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Place.choose("cuda:1", None, "auto").device == torch.device("cuda:1")
    with pytest.raises(RuntimeFault, match="--device cuda:2: the last CUDA device here is cuda:1"):
        Place.choose("cuda:2", None, "auto")
