"""Which decoder answers: what is asked for, what the model was trained for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusion_models import KINDS, MASK, make_diffusion_toy
from toy_models import GEMMA3, make_toy

from wrinklefree.engine import DecodingSettings, Engine, SamplingParams, greedy
from wrinklefree.errors import InputError

LEFT = DecodingSettings(mode="block", sub_block=1)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    root = tmp_path_factory.mktemp("modes")
    sizes: dict[str, int | None] = {**dict.fromkeys(KINDS, 8), "whole": None, "wide": 512}
    made = {
        name: make_diffusion_toy(root / name, {"whole": "llada", "wide": "llada"}.get(name, name), size)
        for name, size in sizes.items()
    }
    made["plain"] = make_toy(root / "plain", "llama_tensor")
    return {name: Engine.load(directory, threads=1, context=64) for name, directory in made.items()}


def mode_of(engine: Engine, **settings: Any) -> str:
    return engine.generate([3], greedy(1), DecodingSettings(**settings)).mode


def test_auto_is_what_the_model_was_trained_for(engines: dict[str, Engine]) -> None:
    assert mode_of(engines["plain"]) == "ar"
    block = [kind for kind in KINDS if mode_of(engines[kind]) == "block"]
    assert block == ["fast_dllm", "fast_dllm_causal_text", "llada"]
    assert mode_of(engines["causal_unshifted"]) == mode_of(engines["causal_block_text"]) == "ar"


@pytest.mark.parametrize(("cost", "mode"), [(0.01, "speculative"), (1.0, "ar")])
def test_auto_speculates_where_rows_are_cheap(engines: dict[str, Engine], cost: float, mode: str) -> None:
    engine = engines["causal"]
    engine._row_costs = 1 + cost * np.arange(17.0)
    assert mode_of(engine) == mode
    made = engine.generate([5, 6, 7], greedy(30)).run()
    assert made.tokens == engine.generate([5, 6, 7], greedy(30), DecodingSettings(mode="ar")).run().tokens
    assert (made.proposed is None) == (mode == "ar")
    engine._row_costs = None


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        ("plain", {"mode": "block"}, "mode block: this model was not trained for block diffusion .no dlm marker"),
        ("plain", {"mode": "speculative"}, "mode speculative: this model was not trained for block diffusion"),
        ("whole", {"mode": "block"}, "mode block: .*block_size null"),
        ("whole", {}, "mode block: .*block_size null"),
        ("wide", {"mode": "block"}, "blocks of 512 positions do not fit into a pass, which has 256 rows"),
        ("fast_dllm", {"mode": "speculative"}, "of variant fast_dllm, clean half block_causal, token shift on"),
        ("causal_unshifted", {"mode": "speculative"}, "clean half causal, token shift off; use mode block or ar"),
        ("causal_block_text", {"mode": "speculative"}, "of variant causal, clean half block_causal, token shift on"),
        ("llada", {"mode": "block", "sub_block": 9}, "sub_block: found 9, this model's blocks have 8 positions"),
    ],
)
def test_t16_what_a_model_cannot_do_is_refused(
    engines: dict[str, Engine], model: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        mode_of(engines[model], **settings)


def test_blocks_that_look_ahead_need_whole_attention(tmp_path: Path) -> None:
    for kind in ("fast_dllm", "causal"):
        directory = make_diffusion_toy(tmp_path / kind, kind, **GEMMA3, vocab_size=256)
        engine = Engine.load(directory, threads=1)
        if kind == "causal":
            nine = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
            assert len(engine.generate([3], nine, DecodingSettings(mode="block")).run().tokens) == 9
            continue
        with pytest.raises(InputError, match="mode block: this model has layers with a sliding window"):
            engine.generate([3], greedy(1), DecodingSettings(mode="block"))


def test_mask_in_a_prompt_is_refused(engines: dict[str, Engine]) -> None:
    with pytest.raises(InputError, match="prompt: found the MASK token 255"):
        engines["fast_dllm"].generate([3, MASK, 4], greedy(1))


@pytest.mark.parametrize(
    "marker", [{"mask_token_id": 255}, {"block_size": 0}, {"variant": "fastdllm"}, {"token_shift": 1}]
)
def test_damaged_markers_are_refused(tmp_path: Path, marker: dict[str, Any]) -> None:
    path = make_diffusion_toy(tmp_path / "toy", "llada") / "config.json"
    config = json.loads(path.read_text())
    whole = config["wrinklefree"]["dlm"]
    config["wrinklefree"]["dlm"] = marker if "mask_token_id" in marker else {**whole, **marker}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"dlm"):
        Engine.load(path.parent).generate([3], greedy(1))


@pytest.mark.parametrize("mode", ["ar", "block", "speculative"])
def test_t23_the_beginning_token_is_in_the_prompt_once(tmp_path: Path, mode: Any) -> None:
    # Whether the tokenizer adds it or the text begins with it: the same prompt reaches the model, in every mode.
    directory = make_diffusion_toy(tmp_path / "toy", "causal")
    settings = DecodingSettings(mode=mode, window=2)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    engine = Engine.load(directory, threads=1, context=64)
    wanted = engine.generate([1, 4], greedy(12), settings).run()
    for text in ("ac", "<s>ac"):
        made = engine.generate(text, greedy(12), settings).run()
        assert made.prompt_tokens == 2 and made.tokens == wanted.tokens


def test_without_a_tokenizer_blocks_carry_tokens(tmp_path: Path) -> None:
    directory = make_diffusion_toy(tmp_path / "toy", "fast_dllm")
    named = Engine.load(directory, threads=1).generate([5], greedy(20), LEFT).run()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()
    bare = Engine.load(directory, threads=1)
    made = bare.generate([5], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True), LEFT).run()
    assert made.text == "" and made.tokens[: len(named.tokens)] == named.tokens
