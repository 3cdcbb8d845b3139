"""Generation: what a caller of Engine.generate relies on, with a toy model where numbers do not matter and scripted
tokens (instead of a decoder's) where the text must be known.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import add_tokenizer, make_toy, toy_config

from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.engine import Engine, SamplingParams, Step, greedy
from wrinklefree.engine import native as native_module
from wrinklefree.engine.decoding import Decided
from wrinklefree.engine.generation import Answer
from wrinklefree.engine.stream import StopFilter
from wrinklefree.errors import InputError, MissingDependencyError

EURO = [201, 205, 247]  # the bytes E2 82 AC of the euro sign in the toy tokenizer


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_toy(tmp_path_factory.mktemp("generation") / "toy", "llama_tensor")
    add_tokenizer(directory)
    return directory


@pytest.fixture(scope="module")
def engine(toy: Path) -> Engine:
    return Engine.load(toy, threads=1, context=64)


def scripted_steps(toy: Path, tokens: list[int], **params: Any) -> list[Step]:
    """The steps of an answer that is given ``tokens`` one by one; 0 is the end token."""
    settings_ = SamplingParams(seed=1, **{"max_tokens": len(tokens), **params})
    ends = frozenset(() if settings_.ignore_eos else (0,)) | frozenset(settings_.stop_tokens)
    answer = Answer(2, settings_.max_tokens, settings_, ends, Tokenizer.load(toy).decoder())
    return [step for i, token in enumerate(tokens) for step in answer.take([Decided(2 + i, token)], i + 1)]


@dataclass
class Finished:
    tokens: list[int]
    text: str
    finish_reason: str | None


def scripted(toy: Path, tokens: list[int], **params: Any) -> Finished:
    steps = scripted_steps(toy, tokens, **params)
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
    text = "".join(step.text for step in steps)
    return Finished([step.token for step in steps], text, steps[-1].finish_reason)


def pieces(toy: Path, tokens: list[int], **params: Any) -> list[str]:
    return [step.text for step in scripted_steps(toy, tokens, **params)]


def test_max_tokens_is_exact(engine: Engine) -> None:
    for count in (1, 2, 7):
        generation = engine.generate([5, 6, 7], SamplingParams(max_tokens=count, ignore_eos=True, seed=3)).run()
        assert len(generation.tokens) == count
        assert generation.finish_reason == "length"
        assert generation.forwards == count
        assert generation.prompt_tokens == 3


def test_context_ends_a_text(engine: Engine) -> None:
    # 60 prompt tokens leave positions for 4 more; the token sampled last needs none.
    generation = engine.generate(list(range(2, 62)), SamplingParams(max_tokens=100, ignore_eos=True, seed=3)).run()
    assert len(generation.tokens) == 64 - 60 + 1
    assert generation.finish_reason == "length"
    full = engine.generate(list(range(2, 66)), SamplingParams(max_tokens=100, ignore_eos=True, seed=3)).run()
    assert len(full.tokens) == 1


def test_end_token_ends_a_text(toy: Path) -> None:
    generation = scripted(toy, [2, 3, 0, 4])
    assert (generation.tokens, generation.text, generation.finish_reason) == ([2, 3, 0], "aaab", "stop")
    last = scripted(toy, [2, 3, 0], max_tokens=3)
    assert last.finish_reason == "stop"  # an end token that is also the last allowed one
    ignored = scripted(toy, [2, 0, 3], ignore_eos=True)
    assert (ignored.tokens, ignored.text, ignored.finish_reason) == ([2, 0, 3], "aaab", "length")
    extra = scripted(toy, [2, 9, 3], stop_tokens=(9,))
    assert (extra.tokens, extra.text, extra.finish_reason) == ([2, 9], "aa", "stop")


def test_end_tokens_come_from_the_model(toy: Path) -> None:
    engine = Engine.load(toy)
    assert set(engine.tokenizer.eos_ids) == {0}


def test_stop_string_across_tokens(toy: Path) -> None:
    # "ac" + "ad" + "ae" + "af" with the stop string "da", inside the border of the second and third token
    generation = scripted(toy, [4, 5, 6, 7], stop=("da",))
    assert (generation.text, generation.finish_reason, generation.tokens) == ("aca", "stop", [4, 5, 6])
    assert pieces(toy, [4, 5, 6, 7], stop=("da",)) == ["ac", "a", ""]
    # held back while it may become the stop string, then handed out
    assert pieces(toy, [4, 5, 6, 7], stop=("adaexx",)) == ["ac", "", "", "adaeaf"]
    assert scripted(toy, [4, 5, 6, 7], stop=("zz", "ae")).text == "acad"
    # a text that ends while a stop string is possible gives all of it
    assert scripted(toy, [4, 5, 0], stop=("adae",)).text == "acad"


def test_unfinished_characters_are_held_back(toy: Path) -> None:
    assert pieces(toy, [2, *EURO, 3]) == ["aa", "", "", "€", "ab"]
    assert pieces(toy, [2, *EURO[:2], 0]) == ["aa", "", "", Tokenizer.load(toy).decode(EURO[:2])]
    assert scripted(toy, [*EURO, *EURO, 2], stop=("€aa",)).text == "€"


# Characters of one, two and three tokens, and one that its text breaks off in.
CHARACTERS = st.one_of(st.integers(2, 199).map(lambda token: [token]), st.sampled_from([[200, 203], EURO]))


@given(st.lists(CHARACTERS, min_size=1, max_size=20), st.sampled_from([[], [200], EURO[:2]]), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_pieces_join_to_the_decoded_text(characters: list[list[int]], rest: list[int], stops: int) -> None:
    directory, tokens = PIECES_TOY[0], [token for character in characters for token in character]
    # A broken character behind whole ones of bytes would make the decoder replace those, too.
    tokens += rest if len(characters[-1]) == 1 else []
    text = "".join(pieces(directory, tokens, stop=("ab", "€", "aaa")[:stops]))
    whole = Tokenizer.load(directory).decode(tokens)
    starts = [at for at in (whole.find(stop) for stop in ("ab", "€", "aaa")[:stops]) if at >= 0]
    assert text == whole[: min(starts, default=len(whole))]


@given(st.lists(st.integers(1, 255), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_what_was_handed_out_stays(tokens: list[int]) -> None:
    """Bytes that are no UTF-8 take back nothing before them; without such bytes the pieces are the whole text."""
    decoder, out = Tokenizer.load(PIECES_TOY[0]).decoder(), ""
    for token in tokens:
        out += decoder.push(token)
    out += decoder.flush()
    whole = Tokenizer.load(PIECES_TOY[0]).decode(tokens)
    assert len(out) <= len(whole)
    assert "\ufffd" in whole or out == whole


PIECES_TOY: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _pieces_toy(toy: Path) -> None:
    PIECES_TOY[:] = [toy]


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_stop_filter_gives_the_text_before_the_first_stop(parts: list[str], stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    given_out = ""
    whole = ""
    for part in parts:
        given_out += stop_filter.push(part)
        whole += part
        # never past a stop string, and never more held back than could still be one
        longest = max((len(stop) for stop in stops), default=0)
        if not stop_filter.stopped:
            assert len(whole) - len(given_out) <= max(2 * longest, 0)
    given_out += stop_filter.flush()
    starts = [at for at in (whole.find(stop) for stop in stops) if at >= 0]
    assert given_out == whole[: min(starts, default=len(whole))]
    assert stop_filter.stopped == bool(starts)


def test_same_seed_same_text(engine: Engine) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.0, top_p=1.0, seed=11, ignore_eos=True)
    first = engine.generate([5, 9], params).run()
    assert engine.generate([5, 9], params).run().tokens == first.tokens
    other = SamplingParams(max_tokens=30, temperature=1.0, top_p=1.0, seed=12, ignore_eos=True)
    assert engine.generate([5, 9], other).run().tokens != first.tokens


def test_drawn_seed_is_reported_and_repeats(engine: Engine) -> None:
    first = engine.generate([5, 9], SamplingParams(max_tokens=12, ignore_eos=True)).run()
    again = engine.generate([5, 9], SamplingParams(max_tokens=12, ignore_eos=True, seed=first.seed)).run()
    assert again.tokens == first.tokens


def test_logprobs(engine: Engine) -> None:
    steps = list(engine.generate([5, 9], SamplingParams(max_tokens=4, temperature=0, logprobs=3, ignore_eos=True)))
    tokens = [5, 9] + [step.token for step in steps]
    rows = engine.logits(tokens)[1:-1].astype(np.float64)
    wanted = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    for step, row in zip(steps, wanted, strict=True):
        # decoded one by one against a prefill: float32 sums in another order
        assert step.logprob == pytest.approx(row[step.token], abs=2e-3)
        assert [token for token, _ in step.best] == np.argsort(-row)[:3].tolist()
        assert step.best[0] == (step.token, step.logprob)
    assert next(iter(engine.generate([5], greedy(1)))).logprob is None


def test_figures_of_a_generation(engine: Engine) -> None:
    generation = engine.generate([5, 9], greedy(5))
    assert generation.finish_reason is None and generation.tokens_per_second is None
    generation.run()
    assert generation.tokens_per_second is not None and generation.tokens_per_second > 0
    assert generation.first_token_seconds is not None
    assert 0 < generation.first_token_seconds < generation.seconds


def test_prompt_errors(engine: Engine) -> None:
    with pytest.raises(InputError, match="prompt: found no token"):
        engine.generate([])
    with pytest.raises(InputError, match="prompt: found no token"):
        engine.generate("")
    with pytest.raises(InputError, match="65 tokens are more than the context of 64"):
        engine.generate([2] * 65)
    with pytest.raises(InputError, match="found token 256 at index 1, allowed are 0 to 255"):
        engine.generate([2, 256])
    for wrong in ([2, -1], [2, 2**40], [2, 2**80], [2.5], [True], [[2, 3]], ["a"], [[2], [2, 3]]):
        with pytest.raises(InputError, match="prompt"):
            engine.generate(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tokens: found no token"):
        engine.logits([])


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "from 1 to"),
        ("max_tokens", 2.0, "an integer"),
        ("temperature", -0.1, "from 0.0 to 100.0"),
        ("temperature", float("nan"), "a number"),
        ("top_k", -1, "from 0"),
        ("top_p", 0, "above 0"),
        ("top_p", 1.1, "from 0.0 to 1.0"),
        ("min_p", 2, "from 0.0 to 1.0"),
        ("repetition_penalty", 0, "from 0.01"),
        ("seed", -1, "from 0"),
        ("seed", 2**64, "from 0"),
        ("stop", ("",), "1 to 1024 characters"),
        ("stop", ("a",) * 17, "at most 16"),
        ("stop_tokens", (-1,), "from 0"),
        ("logprobs", 101, "from 0 to 100"),
    ],
)
def test_parameters_are_checked(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(InputError, match=f"{name}: found .*{allowed}"):
        SamplingParams(**{name: value})


def test_one_stop_string_may_be_given_plainly() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)  # type: ignore[arg-type]


def test_slots_are_held_and_freed(toy: Path) -> None:
    engine = Engine.load(toy, slots=2)
    first, second = engine.generate([5], greedy(9)), engine.generate([6], greedy(9))
    next(first), next(second)
    third = engine.generate([7], greedy(2))
    with pytest.raises(InputError, match="all 2 slots are in use"):
        next(third)
    first.close()
    assert len(engine.generate([7], greedy(2)).run().tokens) == 2
    with engine.generate([8], greedy(9)) as fourth:
        next(fourth)
    del second
    assert len(engine.logits([1, 2])) == 2
    assert engine.prefill_seconds(4) > 0
    assert engine.decode_seconds(3, start=4) > 0


def test_generations_in_threads(toy: Path) -> None:
    engine = Engine.load(toy, slots=4, threads=2)
    alone = [engine.generate([i + 2, 9], greedy(25)).run().tokens for i in range(4)]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        found[i] = engine.generate([i + 2, 9], greedy(25)).run().tokens

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[i] for i in range(4)] == alone


def test_a_model_without_files(toy: Path) -> None:
    engine = Engine.random(toy_config("qwen3"), granularity="group", group_size=128, seed=4, threads=1)
    again = Engine.random(toy_config("qwen3"), granularity="group", group_size=128, seed=4, threads=1)
    logits = engine.logits([1, 2, 3])
    assert np.isfinite(logits).all() and logits.std() > 0
    np.testing.assert_array_equal(logits, again.logits([1, 2, 3]))
    assert [step.text for step in engine.generate([3], greedy(2))] == ["", ""]
    with pytest.raises(InputError, match="has none"):
        _ = engine.tokenizer
    with pytest.raises(InputError, match="stop strings need a tokenizer"):
        engine.generate([3], SamplingParams(stop=("a",)))
    assert engine.bytes_per_token > 256 * 64


def test_end_tokens_without_a_tokenizer() -> None:
    plain = Engine.random({**toy_config("llama_tensor"), "eos_token_id": None}, threads=1)
    tokens = plain.generate([3], greedy(6)).run().tokens
    ends = Engine.random({**toy_config("llama_tensor"), "eos_token_id": [tokens[2], 9]}, threads=1)
    generation = ends.generate([3], greedy(6)).run()
    assert generation.tokens == tokens[: tokens.index(tokens[2]) + 1]
    assert generation.finish_reason == "stop"
    ignoring = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    assert ends.generate([3], ignoring).run().tokens == tokens


def test_load_errors(tmp_path: Path, toy: Path) -> None:
    with pytest.raises(InputError, match="found no directory"):
        Engine.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="threads: found 0"):
        Engine.load(toy, threads=0)
    with pytest.raises(InputError, match="context: found 0"):
        Engine.load(toy, context=0)
    with pytest.raises(InputError, match="slots: found 0"):
        Engine.load(toy, slots=0)


def test_missing_extension_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, toy: Path) -> None:
    monkeypatch.setitem(sys.modules, "wrinklefree._native", None)
    with pytest.raises(MissingDependencyError, match="pip install wrinklefree"):
        native_module.load_native()
    with pytest.raises(MissingDependencyError):
        Engine.load(toy)


def test_engine_needs_no_torch(toy: Path) -> None:
    program = (
        "import sys\n"
        "import wrinklefree.engine as e\n"
        "heavy = {'torch', 'transformers', 'lightning', 'datasets'}\n"
        "assert not heavy & set(sys.modules), 'import'\n"
        "assert 'tokenizers' not in sys.modules, 'the tokenizer library is loaded when asked for'\n"
        f"made = e.Engine.load({str(toy)!r}).generate('aaabac', e.greedy(3)).run()\n"
        "assert len(made.tokens) <= 3 and made.text is not None\n"
        "assert not heavy & set(sys.modules), 'generate'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_forked_process_gets_an_error_not_a_hang(toy: Path) -> None:
    program = (
        "import os, sys\n"
        "import wrinklefree.engine as e\n"
        f"engine = e.Engine.load({str(toy)!r}, threads=2)\n"
        "engine.logits([1, 2])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        engine.logits([1, 2])\n"
        "    except e.engine.InputError as error:\n"
        "        os._exit(7 if 'forked' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60).returncode == 7


def test_default_threads_are_the_cores_this_process_may_use() -> None:
    program = (
        "import os\n"
        "from wrinklefree import _native\n"
        "print(_native.available_cores())\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(_native.available_cores())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    all_cores, one_core = map(int, done.stdout.split())
    assert 1 <= all_cores <= len(os.sched_getaffinity(0))
    assert one_core == 1
