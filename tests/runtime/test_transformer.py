"""The layer loop: what a step gives does not depend on how it was cut, packed or seeded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from runtime.errors import RuntimeFault
from runtime.kernels.base import StepInputs
from runtime.kernels.open import NAMES, best_kernels, open_kernels
from runtime.kernels.reference import reference_kernels
from runtime.model.random_weights import SCALE_BYTES, random_weights
from runtime.model.tiny import tiny_config, tiny_weights
from runtime.model.transformer import Transformer, build_transformer, forward
from runtime.model.weights import tensors
from tests.runtime.ragged import Span, poisoned_caches, run_chunks, step_inputs

CPU = torch.device("cpu")


def tokens(count: int, seed: int = 3) -> list[int]:
    return torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_batched_is_one_by_one(tiny_model: Transformer) -> None:
    lengths = [1, 16, 17, 33, 5]
    prompts = [tokens(length, seed) for seed, length in enumerate(lengths)]
    pages = [[1 + 5 * column + number for column in range(5)] for number in range(5)]
    spans = [Span(prompt, 0, own) for prompt, own in zip(prompts, pages, strict=True)]
    together = forward(tiny_model, step_inputs(spans, 8), poisoned_caches(tiny_model, 26, 8))
    for part, prompt in zip(together.split(lengths), prompts, strict=True):
        torch.testing.assert_close(part, run_chunks(tiny_model, prompt, [len(prompt)]), rtol=1e-4, atol=1e-4)


def test_a_step_may_mix_decode_with_a_prompt(tiny_model: Transformer) -> None:
    first, second = tokens(20), tokens(12, seed=4)
    caches = poisoned_caches(tiny_model, 9, 8)
    forward(tiny_model, step_inputs([Span(first[:19], 0, [1, 2, 3])], 8), caches)
    mixed = step_inputs([Span(first[19:], 19, [1, 2, 3]), Span(second, 0, [5, 4])], 8)
    found = forward(tiny_model, mixed, caches)
    torch.testing.assert_close(found[0], run_chunks(tiny_model, first, [20])[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1:], run_chunks(tiny_model, second, [12]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("page_size", [1, 4, 16, 64])
def test_the_size_of_a_page_does_not_matter(page_size: int, tiny_model: Transformer) -> None:
    ids = tokens(40)
    whole = run_chunks(tiny_model, ids, [40], page_size=8)
    torch.testing.assert_close(run_chunks(tiny_model, ids, [15, 1, 1, 23], page_size), whole, rtol=1e-4, atol=1e-4)


def test_only_the_rows_that_are_wanted_come_back_in_their_order(tiny_model: Transformer) -> None:
    ids = tokens(10)
    inputs = step_inputs([Span(ids, 0, [1, 2])], 8, rows=[9, 0, 4])
    found = forward(tiny_model, inputs, poisoned_caches(tiny_model, 3, 8))
    torch.testing.assert_close(found, run_chunks(tiny_model, ids, [10])[[9, 0, 4]], rtol=1e-4, atol=1e-4)


def test_one_cache_for_each_layer_is_demanded(tiny_model: Transformer) -> None:
    inputs = step_inputs([Span([1], 0, [1])], 8)
    with pytest.raises(ValueError, match="zip"):
        forward(tiny_model, inputs, poisoned_caches(tiny_model, 2, 8)[:-1])


@pytest.mark.parametrize(("sliding", "position", "reaches"), [(True, 24, True), (True, 23, False), (False, 23, True)])
def test_a_windowed_layer_sees_sixteen_tokens_itself_included(sliding: bool, position: int, reaches: bool) -> None:
    config = replace(tiny_config(layers=1, window=16), sliding=(sliding,))
    model = build_transformer(config, tiny_weights(config), reference_kernels(), positions=40)
    ids = tokens(40)
    other = [*ids[:position], (ids[position] + 1) % 256, *ids[position + 1 :]]
    moved = (run_chunks(model, ids, [40])[-1] - run_chunks(model, other, [40])[-1]).abs().max().item()
    assert moved > 1e-3 if reaches else moved < 1e-5


def test_the_kernels_are_handed_what_the_record_promises(tiny_model: Transformer) -> None:
    seen: list[tuple[int | None, torch.dtype]] = []
    attend = tiny_model.kernels.attend

    def watching(*given: object) -> torch.Tensor:
        *_, sinks, _, inputs, window, shapes = given
        assert isinstance(inputs, StepInputs)
        assert isinstance(sinks, torch.Tensor)
        assert shapes == tiny_model.config.shapes()
        seen.append((window, sinks.dtype))  # type: ignore[arg-type]
        return attend(*given)  # type: ignore[arg-type]

    model = replace(tiny_model, kernels=replace(tiny_model.kernels, attend=watching))
    run_chunks(model, tokens(3), [3])
    assert seen == [(16, torch.float32), (None, torch.float32)] * 2


def test_nothing_records_gradients(tiny_model: Transformer) -> None:
    assert not run_chunks(tiny_model, tokens(2), [2]).requires_grad


def test_a_model_knows_where_and_what_it_is() -> None:
    config = tiny_config()
    model = build_transformer(config, tiny_weights(config), reference_kernels(), positions=4)
    assert (model.device, model.dtype, model.rope.shape) == (CPU, torch.bfloat16, (4, 16))
    whole = build_transformer(replace(config, context_tokens=99), model.weights, reference_kernels())
    assert whole.rope.shape == (99, 16)


def test_random_weights_are_valid_spread_evenly_and_repeatable() -> None:
    config = tiny_config(layers=2)
    weights = random_weights(config, CPU, torch.float32, seed=4)
    again = random_weights(config, CPU, torch.float32, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(tensors(weights), tensors(again), strict=True))
    other = random_weights(config, CPU, torch.float32, seed=5)
    assert not torch.equal(weights.embedding, other.embedding)
    for layer in weights.layers:
        assert layer.attention_gain.unique().tolist() == [1.0]
        assert layer.up.scales.unique().tolist() == list(range(SCALE_BYTES[0], SCALE_BYTES[1] + 1))
        assert len(layer.down.blocks.unique()) == 256
    model = build_transformer(config, weights, reference_kernels(), positions=400)
    counts = torch.zeros(config.experts)
    route = model.kernels.route

    def counting(*given: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = route(*given)  # type: ignore[arg-type]
        counts.add_(torch.bincount(found[1].flatten(), minlength=config.experts))
        return found

    logits = run_chunks(replace(model, kernels=replace(model.kernels, route=counting)), tokens(400), [400])
    assert logits.isfinite().all()
    share = counts / counts.sum()
    assert share.min() > 0.5 / config.experts
    assert share.max() < 2.0 / config.experts


def test_sizes_that_the_kernels_do_not_take_are_refused_before_anything_runs() -> None:
    config = replace(tiny_config(), intermediate=96)
    kernels = replace(reference_kernels(), refusal=lambda shapes: f"{shapes.intermediate} is odd")
    with pytest.raises(RuntimeFault, match=r"the reference kernels do not run this model: 96 is odd\. Use"):
        build_transformer(config, tiny_weights(config), kernels)


def test_a_kernel_that_does_not_run_on_the_device_is_said(tiny_model: Transformer) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise ArithmeticError("shared memory, required: 300000")

    model = replace(tiny_model, kernels=replace(tiny_model.kernels, attend=refuse, unfit=(ArithmeticError,)))
    with pytest.raises(RuntimeFault, match=r"the reference kernels do not run on cpu: ArithmeticError: .*300000\. Use"):
        run_chunks(model, tokens(3), [3])


def test_kernels_are_chosen_by_name() -> None:
    assert open_kernels("reference", CPU).name == "reference"
    assert open_kernels("auto", CPU).name == "reference"
    assert best_kernels(CPU) == ("reference", "cpu is not a CUDA GPU")
    assert not open_kernels("reference", CPU).recordable  # it makes tables on the host, which no graph may wait for
    with pytest.raises(RuntimeFault, match=r"no kernels called 'cutlass'.*auto, reference, triton"):
        open_kernels("cutlass", CPU)
    assert set(NAMES) == {"auto", "reference", "triton"}


@pytest.mark.parametrize(
    ("capability", "name", "why"),
    [((7, 0), "reference", "too old for the Triton kernels"), ((9, 0), "triton", "there is a CUDA GPU, Some GPU")],
)
def test_a_gpu_that_is_too_old_gets_the_plain_kernels(
    capability: tuple[int, int], name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    found, because = best_kernels(torch.device("cuda"))
    assert found == name
    assert why in because
