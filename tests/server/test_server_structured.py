"""Answers that must keep to a rule do, whatever a model of random weights would say; bad rules are refused by field."""

from __future__ import annotations

import asyncio
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusion_models import make_diffusion_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import RunningServer, chat_toy
from sse_reading import chunks
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from wrinklefree.engine import Engine, SamplingParams
from wrinklefree.server import grammar
from wrinklefree.server.errors import ApiError
from wrinklefree.server.grammar import Grammars, GrammarState, Rule
from wrinklefree.server.regex_size import expanded_size
from wrinklefree.server.structured import schema_rule

SCHEMA = "response_format.json_schema.schema"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def named(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


def ask(server: RunningServer, path: str = CHAT, **body: Any) -> Any:
    given = {"messages": HELLO} if path == CHAT else {"prompt": "hello"}
    return server.client.post(path, json={**given, "max_tokens": 200, "seed": 1, **body})


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_schema_is_kept_to(server: RunningServer, temperature: float) -> None:
    answer = ask(server, response_format=named(PERSON), temperature=temperature, seed=3, n=3).json()
    for choice in answer["choices"]:
        found = json.loads(choice["message"]["content"])
        assert list(found) == ["name", "age", "kind", "tags"] and choice["finish_reason"] == "stop"
        assert re.fullmatch("[A-Z][a-z]{1,8}", found["name"]) and 0 <= found["age"] <= 120
        assert found["kind"] in ("cat", "dog") and 1 <= len(found["tags"]) <= 3
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == (1 if temperature == 0 else 3)  # states of their own: n answers are n draws
    alone = ask(server, response_format=named(PERSON), temperature=temperature, seed=4).json()
    assert alone["choices"][0]["message"]["content"] == texts[1]
    assert alone["wrinklefree"]["mode"] == "ar"


def test_the_stream_is_the_same_text(server: RunningServer) -> None:
    body = {"messages": HELLO, "max_tokens": 200, "seed": 8, "response_format": named(PERSON)}
    pieces = [one["choices"][0]["delta"].get("content", "") for one in chunks(server.client, CHAT, body)]
    assert "".join(pieces) == ask(server, **{**body, "stream": False}).json()["choices"][0]["message"]["content"]


def test_json_objects_regexes_and_choices_in_text_completions(server: RunningServer) -> None:
    path = "/v1/completions"
    assert ask(server, path, guided_choice=["yes", "no", "yes, but"]).json()["choices"][0]["text"] in (
        "yes",
        "no",
        "yes, but",
    )
    assert re.fullmatch(
        "[0-9]{3}-[a-f]+x", ask(server, path, guided_regex="[0-9]{3}-[a-f]{1,9}x").json()["choices"][0]["text"]
    )
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "additionalProperties": False}
    answer = ask(server, path, prompt=["one", "two"], response_format={"type": "json_object", "schema": schema}).json()
    assert [json.loads(one["text"]) for one in answer["choices"]] == [{"a": None}] * 2


def test_a_free_json_object(server: RunningServer) -> None:
    # without a bound a random model's text ends nowhere; what there is of it must be the beginning of an object
    answer = ask(server, response_format={"type": "json_object"}, logit_bias={str(ord("}")): 3}, seed=1).json()[
        "choices"
    ][0]
    assert answer["message"]["content"].startswith("{")
    assert answer["finish_reason"] == "length" or isinstance(json.loads(answer["message"]["content"]), dict)
    free = ask(server, response_format={"type": "text"}, seed=2, max_tokens=9).json()["choices"][0]["message"]
    assert free == ask(server, seed=2, max_tokens=9).json()["choices"][0]["message"]


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        ("a{3}", 3),
        ("a{2,5}b", 6),
        ("a{3,}", 3),
        ("(ab{2}){4}", 12),
        ("(?:(a|b){3}c){10}", 80),
        (r"\d{4}-\p{Lu}{2}", 7),
        (r"[a-z\]{3}]{5}", 5),
        ("[]a{9}]{2}", 2),
        ("[^]a]{7}", 7),
        ("[a[b]{5}c]{2}", 2),
        ("a*b+c?", 3),
        ("x{0}", 1),
        ("{", 1),
        ("a{,4}", 4),
        ("a{2}{3}", 6),
        ("(a{1000}){1000}", 10**6),
        ("a{99999999999}", 10**6),
    ],
)
def test_sizes_of_regular_expressions(pattern: str, size: int) -> None:
    assert expanded_size(pattern) == size


def test_a_schema_that_is_no_json(server: RunningServer) -> None:
    schema = (
        '{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_object", "schema": %s}}'
    )
    answer = server.client.post(CHAT, content=schema % '{"const": NaN}', headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"guided_regex": "(a"}, "guided_regex", "unclosed group"),
        ({"guided_regex": "(a{100}){100}"}, "guided_regex", "may have 5000 characters"),
        ({"guided_regex": "(?x)a"}, "guided_regex", "the flag x is not allowed"),
        ({"response_format": named({"items": {"pattern": "a{5001}"}})}, SCHEMA, "written out, found 5001"),
        ({"response_format": named({"anyOf": [{"const": n} for n in range(257)]})}, SCHEMA, "found 257 parts"),
        ({"response_format": named({"type": "foo"})}, SCHEMA, "Invalid type: foo"),
        ({"response_format": named({"items": [{"multipleOf": 100.01}]})}, SCHEMA, "multipleOf may be 10000"),
        ({"response_format": named({"multipleOf": -(10**400)})}, SCHEMA, "multipleOf may be 10000"),
        ({"response_format": named({"type": "integer", "multipleOf": True})}, SCHEMA, "multipleOf"),
        ({"response_format": named({"$ref": "#"})}, SCHEMA, "no text that keeps to it"),
        ({"response_format": named({"if": {}})}, SCHEMA, "Unimplemented keys"),
        ({"response_format": named({"if": {}, "x-guidance": {"lenient": True}})},
         SCHEMA, "Unimplemented keys"),
        ({"response_format": named({"$ref": "http://127.0.0.1:1/x"})}, SCHEMA, "retriev"),
        ({"response_format": named(deep(20))}, SCHEMA, "more than 32 deep"),
        ({"response_format": named({"enum": ["x" * 70000]})}, SCHEMA, "at most 65536"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema", "given"),
        ({"response_format": {"type": "text", "schema": {}}}, "response_format.schema", "belongs to type json_object"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "guided_regex", "can keep to one of them"),
        ({"guided_choice": ["a"], "mode": "block"}, "mode", "guided_choice needs mode ar or auto"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be(server: RunningServer, body: dict[str, Any], param: str, message: str) -> None:
    answer = ask(server, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert message in error["message"]


@pytest.fixture(scope="module")
def engine(toy: Path) -> Engine:
    return Engine.load(toy, threads=1, context=512)


@pytest.fixture(scope="module")
def grammars(engine: Engine) -> Grammars:
    return Grammars(engine)


def states(grammars: Grammars, rule: Rule, count: int = 1) -> list[GrammarState]:
    return asyncio.run(grammars.compile(rule, count))


def allowed(state: GrammarState) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(state.mask().view(np.uint8), bitorder="little")).tolist())


def test_states_are_of_one_answer_each(engine: Engine, grammars: Grammars) -> None:
    one, other = states(grammars, Rule("f", "regex", "ab|cd"), 2)
    a, b, c, end = (*(engine.tokenizer.encode(letter)[0] for letter in "abc"), 257)
    assert allowed(one) == allowed(other) == {a, c}
    one.accept(a)
    assert allowed(one) == {b} and allowed(other) == {a, c}
    one.accept(b)
    assert one.finished and allowed(one) == {end} and not other.finished


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5, unique=True), st.data())
@settings(max_examples=25, deadline=None)
def test_any_choice_can_be_said_and_nothing_else(
    engine: Engine, grammars: Grammars, choices: list[str], data: Any
) -> None:
    text = data.draw(st.sampled_from(choices))
    (state,) = states(grammars, Rule("f", "regex", "|".join(re.escape(one) for one in choices)))
    for token in engine.tokenizer.encode(text):
        assert token in allowed(state)
        state.accept(token)
    assert state.finished or 257 in allowed(state)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(
    ["", "a", "#", "#/$defs/a", "x", "^a{1,30}$", "(", "[^x]*", "date", "string", "integer", "object", "array", "null"]
)  # fmt: skip
KEYS = st.sampled_from(
    ["type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems", "enum",
     "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "pattern", "format", "minLength", "maxLength", "minimum",
     "maximum", "multipleOf", "patternProperties", "x-guidance", "not", "a"]
)  # fmt: skip
SCHEMAS = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


@given(st.dictionaries(KEYS, SCHEMAS, max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_schema_is_refused_or_kept_to(grammars: Grammars, schema: dict[str, Any], random: Any) -> None:
    try:
        (state,) = states(grammars, schema_rule("f", schema))
    except ApiError as error:
        assert error.status == 400 and error.message.startswith("f: ") and len(error.message) > 4
        return
    for _ in range(20):
        tokens = sorted(allowed(state))
        assert tokens
        state.accept(random.choice(tokens))
        if state.finished:
            break


def test_random_walks_through_a_schema_give_its_instances(engine: Engine, grammars: Grammars) -> None:
    for seed in range(5):
        (state,) = states(grammars, Rule("f", "json_schema", json.dumps(PERSON)))
        answer = engine.generate(
            "x", SamplingParams(400, temperature=5.0, top_p=1.0, seed=seed), constraint=state
        ).run()
        assert answer.finish_reason == "stop" and set(json.loads(answer.text)) == set(PERSON["properties"])


def test_a_rule_that_becomes_too_complex_ends_its_answer_alone(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "_MASK_SECONDS", 0.0)
    answer = ask(server, guided_regex="[a-z]{9}")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "guided_regex", "grammar_failed")
    assert ask(server, max_tokens=3).status_code == 200


def other_tokenizer(directory: Path, tokenizer: Tokenizer) -> Engine:
    chat_toy(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return Engine.load(directory, threads=1, context=64)


def test_a_tokenizer_of_sentencepiece(tmp_path: Path) -> None:
    letters = {sign: 256 + i for i, sign in enumerate("▁")}
    vocabulary = {**{f"<0x{byte:02X}>": byte for byte in range(256)}, **letters}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken("</s>", normalized=False)])
    engine = other_tokenizer(tmp_path / "toy", tokenizer)
    (state,) = states(Grammars(engine), Rule("f", "regex", "é is (good|fine)"))
    answer = engine.generate([65], SamplingParams(40, temperature=3.0, seed=1), constraint=state).run()
    assert answer.text in ("é is good", "é is fine") and answer.finish_reason == "stop"


def test_bytes_that_the_vocabulary_does_not_have(tmp_path: Path) -> None:
    letters = {sign: token for token, sign in enumerate("abc")}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.add_special_tokens([AddedToken("</s>", normalized=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    grammars = Grammars(other_tokenizer(tmp_path / "toy", tokenizer))
    with pytest.raises(ApiError, match="f: the model has no text that keeps to it"):
        states(grammars, Rule("f", "regex", "x|y"))
    (state,) = states(grammars, Rule("f", "regex", "x|ax"))
    assert allowed(state) == {0}
    state.accept(0)
    assert not state.finished
    with pytest.raises(ApiError, match="the model has no text that keeps to it"):
        state.mask()


def test_a_tokenizer_without_bytes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    engine = other_tokenizer(tmp_path / "toy", tokenizer)
    with pytest.raises(ApiError, match="f: this model's tokenizer is of a kind that has no grammars") as raised:
        states(Grammars(engine), Rule("f", "regex", "a"))
    assert raised.value.status == 400


def test_a_server_of_another_mode(tmp_path: Path) -> None:
    toy = make_diffusion_toy(tmp_path / "toy", "fast_dllm")
    with RunningServer(toy, context=256, mode="block") as running:
        free, kept = (
            running.client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 8, **more}).json()
            for more in ({}, {"guided_regex": "[a-g]{6}"})
        )
    assert free["wrinklefree"]["mode"] == "block"
    assert kept["wrinklefree"]["mode"] == "ar" and re.fullmatch("[a-g]{6}", kept["choices"][0]["text"])


def test_kept_answers_in_a_crowd_are_those_alone(server: RunningServer) -> None:
    rules: list[dict[str, Any]] = [
        {"response_format": named(PERSON)},
        {"guided_regex": "[a-z]{5,20}"},
        {"presence_penalty": 1.5, "logit_bias": {"65": 3}},
    ]
    bodies = [{**rules[number % 3], "seed": number, "max_tokens": 60} for number in range(9)]
    alone = [ask(server, **body).json()["choices"] for body in bodies]
    with ThreadPoolExecutor(9) as pool:
        crowd = list(pool.map(lambda body: ask(server, **body).json()["choices"], bodies))
    assert crowd == alone
