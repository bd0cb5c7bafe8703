"""The runtime's own commands: logits, generate, bench and tune. They read token ids and write numbers, never text.

torch is imported after the allocator is configured, and not at all for ``--help``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from runtime.allocator import prepare_allocator
from runtime.errors import RuntimeFault

FAULT = 3  # the exit code of everything the runtime raises on purpose; argparse ends with 2
INTERRUPTED = 130
# harmony's <|return|>, <|call|> and <|endoftext|>: the default stop tokens.
STOP_IDS = (200_002, 200_012, 199_999)


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    options = parser().parse_args(arguments)
    prepare_allocator()
    try:
        _run(options)
    except RuntimeFault as fault:
        print(f"runtime: {fault}", file=sys.stderr)  # noqa: T201 - a command line prints
        return FAULT
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _run(options: argparse.Namespace) -> None:
    # Imported here: torch takes a second, and must find the allocator's setting in the environment.
    if options.command == "tune":
        _tune(options)
        return
    from runtime import commands

    place = commands.Place.choose(options.device, options.dtype, options.kernels)
    match options.command:
        case "logits":
            commands.logits(place, options.checkpoint, options.ids, options.out, options.chunk_tokens)
        case "generate":
            commands.generate(
                place,
                options.checkpoint,
                options.ids,
                max_tokens=options.max_tokens,
                stop=frozenset(options.stop or STOP_IDS),
                temperature=options.temperature,
                top_p=options.top_p,
                seed=options.seed,
            )
        case "bench":
            commands.bench(
                place,
                options.model,
                commands.Load(options.prompt_tokens, options.tokens, options.batch, options.repeats),
            )


def _tune(options: argparse.Namespace) -> None:
    """Tune the kernels (needs no checkpoint)."""
    try:
        from runtime.tune import tune
    except ModuleNotFoundError as missing:
        raise RuntimeFault(
            f"tuning needs the package {missing.name}: pip install 'gpt-oss-agent[runtime]'"
        ) from missing
    say = partial(print, flush=True)
    tune(options.model, quick=options.quick, out=options.out, cache=options.cache_dir, say=say)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="python -m runtime", description="Run a gpt-oss checkpoint on this machine.")
    commands = top.add_subparsers(dest="command", required=True)

    logits = commands.add_parser("logits", help="write the logits of a prompt, float32 [tokens, vocabulary]")
    _checkpoint(logits)
    _ids(logits)
    logits.add_argument("--out", type=Path, required=True, metavar="LOGITS.npy", help="where to write them")
    logits.add_argument(
        "--chunk-tokens", type=_positive, default=256, metavar="N", help="tokens per step (256); bounds the memory"
    )
    _place_options(logits)

    generate = commands.add_parser("generate", help="continue a prompt, one sampled id per line")
    _checkpoint(generate)
    _ids(generate)
    generate.add_argument(
        "--max-tokens", type=_positive, default=128, metavar="N", help="maximum number of tokens (128)"
    )
    generate.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="sampling temperature; 0 is greedy (1.0)"
    )
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="nucleus (1.0)")
    generate.add_argument("--seed", type=int, metavar="N", help="random seed")
    generate.add_argument(
        "--stop", type=int, action="append", metavar="ID", help="end there; may be repeated (harmony's three ends)"
    )
    _place_options(generate)

    bench = commands.add_parser("bench", help="time prefill and decode")
    bench.add_argument("model", metavar="20b|120b|tiny|CHECKPOINT", help="random weights of a size, or a checkpoint")
    bench.add_argument(
        "--prompt-tokens", type=_positive, default=1024, metavar="N", help="prompt tokens per sequence (1024)"
    )
    bench.add_argument("--tokens", type=_positive, default=128, metavar="N", help="tokens to decode per sequence (128)")
    bench.add_argument("--batch", type=_positive, default=1, metavar="N", help="sequences in a batch (1)")
    bench.add_argument("--repeats", type=_positive, default=3, metavar="N", help="timed runs after one warm-up (3)")
    _place_options(bench)

    tune = commands.add_parser("tune", help="find the fastest sizes of the kernels for this GPU, and keep them")
    tune.add_argument(
        "--model",
        choices=("20b", "120b"),
        default="20b",
        help="whose shapes to measure (20b); one choice holds for both",
    )
    tune.add_argument("--quick", action="store_true", help="fewer candidates, fewer rounds")
    tune.add_argument("--out", type=Path, metavar="FILE.json", help="write the choice there too")
    tune.add_argument("--cache-dir", type=Path, metavar="DIR", help="where the choice is kept (the agent's cache_dir)")
    return top


def _checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder with config.json and *.safetensors, or a downloaded model"
    )


def _ids(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ids", type=Path, required=True, metavar="FILE", help="token ids, one per line (-: stdin)")


def _place_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", metavar="cpu|cuda|mps", help="device (the first CUDA device, else the CPU)")
    command.add_argument("--dtype", choices=("fp32", "bf16"), help="data type (bf16 on a GPU, fp32 on the CPU)")
    command.add_argument("--kernels", choices=("auto", "reference", "triton"), default="auto", help="which (auto)")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value
