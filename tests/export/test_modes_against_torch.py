"""The engine's other ways with a diffusion model against their torch references: drawn tokens, and speculation."""

from __future__ import annotations

from diffusion_toys import diffusion_toy, packed, text
from wrinklefree.engine import DecodingSettings, Engine, SamplingParams, greedy
from wrinklefree.engine.native import load_native
from wrinklefree.export.tables import quantized_tables
from wrinklefree.export.verify import exported_tables
from wrinklefree.models import block_decoding as blocks
from wrinklefree.models.self_speculation import decode_speculatively


def test_tokens_drawn_in_blocks_are_those_of_the_reference_with_the_same_random_numbers() -> None:
    model, marker = diffusion_toy("fast_dllm")
    engine = Engine.load(packed("fast_dllm"), threads=1, kv_type="float32")
    prompt = [(5 * i * i + i) % marker.mask_token_id for i in range(11)]  # not learnt: nothing is sure
    filters = {"temperature": 4.0, "top_k": 20, "top_p": 0.95, "min_p": 0.01, "seed": 5}
    sampler = load_native().Sampler(engine.vocab_size, repetition_penalty=1.0, **filters)
    params = SamplingParams(max_tokens=24, ignore_eos=True, **filters)  # type: ignore[arg-type]
    answer = engine.generate(prompt, params, DecodingSettings("block", threshold=0.05)).run()
    with exported_tables(model, quantized_tables(model, "q8")):
        settings = blocks.DecodingSettings(0.05)
        best = blocks.decode_blocks(model, marker, prompt, 24, settings)
        out = blocks.decode_blocks(
            model, marker, prompt, 24, settings, draw=lambda logits, _: int(sampler.sample(logits.numpy(), -1)[0])
        )
    assert out.ids != best.ids
    assert answer.tokens == out.ids and answer.forwards <= out.forwards


def test_speculation_gives_the_references_text_in_as_many_forwards() -> None:
    model, marker = diffusion_toy("causal")
    engine = Engine.load(packed("causal"), threads=1, kv_type="float32")
    for known, window in ((5, 2), (20, 4)):
        prompt = text(known, known)
        answer = engine.generate(prompt, greedy(30), DecodingSettings("speculative", window=window)).run()
        with exported_tables(model, quantized_tables(model, "q8")):
            out = decode_speculatively(model, marker, prompt, 30, window)
        assert answer.tokens == out.ids
        assert (answer.forwards, answer.proposed, answer.accepted) == (out.forwards, out.proposed, out.accepted)
