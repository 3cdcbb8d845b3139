"""What `--verify-with` says: of transformers reading the truth and reading damage, and of programs that misbehave.

Compared: the unrounded reading of a model's parts with transformers' own reading of the plain export; the verdict on
files that are right and on files with one wrong tensor. The programs that die, hang or talk nonsense are real
processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_checkpoints
from safetensors.numpy import load_file, save_file

from wrinklefree.artifact.gguf.container import read_gguf
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.engine import Engine
from wrinklefree.errors import InputError, VerificationError
from wrinklefree.export import foreign, foreign_programs
from wrinklefree.export.export import export
from wrinklefree.export.foreign import ForeignDifference, check_program, compare_with_program, verify_with
from wrinklefree.export.foreign_server import ServerReader
from wrinklefree.export.walk import model_parts
from wrinklefree.models.exact import exact_model, float_logits, rounded_inputs
from wrinklefree.models.io import load_checkpoint
from wrinklefree.models.plain import export_plain
from wrinklefree.models.reader import TransformersReader
from wrinklefree.quant.ternary import TernarySpec

TEXT = list(range(5, 29))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint, its packed export and its plain export."""
    root = tmp_path_factory.mktemp("foreign")
    toy_checkpoints.write(root / "ckpt")
    export(root / "ckpt", root / "packed", embedding="f16", verify=False)
    export_plain(root / "ckpt", root / "plain")
    return root


@pytest.fixture(scope="module")
def engine(toy: Path) -> Engine:
    return Engine.load(toy / "packed", threads=1, kv_type="float32")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_the_unrounded_reading_is_that_of_the_plain_export(tmp_path: Path, family: str) -> None:
    toy_checkpoints.write(tmp_path / "ckpt", family)
    model, _, info = load_checkpoint(tmp_path / "ckpt")
    config = json.loads((tmp_path / "ckpt" / "config.json").read_text())
    settings = type("Info", (), {"group_size": info.spec.group_size})()
    parts = model_parts(model, tmp_path / "ckpt", config, settings)
    export_plain(tmp_path / "ckpt", tmp_path / "plain")
    plain = TransformersReader(tmp_path / "plain").logits(TEXT, 0)
    assert np.array_equal(float_logits(exact_model(parts), TEXT), plain)


@pytest.mark.parametrize("columns", [None, 4])
def test_rounded_inputs_are_multiples_of_their_blocks_step(columns: int | None) -> None:
    layers = torch.nn.ModuleDict({"inner": torch.nn.Linear(6, 6, bias=False), "lm_head": torch.nn.Linear(6, 6)})
    layers["inner"].weight.data = torch.eye(6)
    x = torch.tensor([[0.1, -0.5, 0.25, 0.3, 100.0, 0.4], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    expected = torch.empty_like(x)
    for row in range(2):
        for block in [range(6)] if columns is None else [range(4), range(4, 6)]:
            step = max(abs(float(x[row, i])) for i in block) / 127
            for i in block:
                expected[row, i] = round(float(x[row, i]) / step) * step
    head = layers["lm_head"](x)
    with rounded_inputs(layers, columns):
        assert torch.allclose(layers["inner"](x), expected, atol=1e-6)
        assert torch.equal(layers["lm_head"](x), head)
    assert torch.equal(layers["inner"](x), x)


@pytest.mark.parametrize(("format", "columns"), [("gguf-tq2_0", 256), ("gguf-i2_s", None)])
def test_a_file_says_how_coarsely_programs_round(tmp_path: Path, format: str, columns: int | None) -> None:
    toy_checkpoints.write(tmp_path / "ckpt", spec=TernarySpec("tensor", 64), intermediate_size=128)
    export(tmp_path / "ckpt", tmp_path / "m.gguf", format, verify=False)
    kinds = {tensor.type.name for tensor in read_gguf(tmp_path / "m.gguf").tensors.values()}
    assert foreign._rounded_columns(tmp_path / "m.gguf") == (None if "I2_S" in kinds else 256)
    assert ("I2_S" in kinds) == (columns is None)
    assert foreign._rounded_columns(tmp_path / "ckpt") is None


def test_transformers_agrees_on_the_plain_export(toy: Path, engine: Engine) -> None:
    found = verify_with("transformers", toy / "plain", packed_parts(toy / "packed"), engine, greedy_tokens=8)
    assert found.passed and found.greedy_tokens == 24 and found.same_choices >= 20
    assert found.own_distance > 10 * found.distance  # float layers round nothing; only the table's float16 is left
    assert found.logit_cosine_min is not None and found.logit_cosine_min > 0.99
    json.dumps(found.to_json())


def _plain_with(toy: Path, out: Path, name: str, change: Any) -> Path:
    out.mkdir()
    for path in (toy / "plain").iterdir():
        if path.name != "model.safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    tensors = load_file(toy / "plain" / "model.safetensors")
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.layers.0.self_attn.q_proj.weight", lambda w: w[np.r_[0:64:2, 1:64:2]]),  # rows in another order
        ("model.layers.1.mlp.down_proj.weight", lambda w: np.sign(w) * np.abs(w).max()),  # one scale for all groups
        ("model.layers.0.mlp.up_proj.weight", lambda w: 0.5 * w),  # the scale divided by two
    ],
)
def test_one_wrong_tensor_is_a_disagreement(toy: Path, engine: Engine, tmp_path: Path, name: str, change: Any) -> None:
    path = _plain_with(toy, tmp_path / "wrong", name, change)
    with pytest.raises(
        VerificationError, match=r"transformers .* disagrees with the engine: .*as far from the unrounded"
    ):
        verify_with("transformers", path, packed_parts(toy / "packed"), engine, greedy_tokens=8)


def test_another_tokenizer_is_a_disagreement(toy: Path, engine: Engine, tmp_path: Path) -> None:
    path = _plain_with(toy, tmp_path / "wrong", "model.norm.weight", lambda w: w)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["e"], vocabulary["a"] = vocabulary["a"], vocabulary["e"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = compare_with_program("transformers", path, packed_parts(toy / "packed"), engine, greedy_tokens=4)
    assert not found.passed and any("its tokens of 'The capital" in problem for problem in found.problems)


def test_a_difference_is_explained_up_to_its_bound_only() -> None:
    def difference(margin: float) -> ForeignDifference:
        return ForeignDifference("", 0, "a", "b", margin, None, bound=0.1)

    assert difference(0.1).explained and not difference(0.11).explained


def test_a_directory_that_transformers_refuses_is_told_in_its_words(toy: Path, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(VerificationError, match="transformers: refused the directory"):
        verify_with("transformers", tmp_path, packed_parts(toy / "packed"), engine)


def test_programs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="did you mean 'node-llama-cpp'"):
        check_program("node-llama-cp", "gguf-tq2_0")
    with pytest.raises(InputError, match="is no executable file"):
        check_program(str(tmp_path / "llama-server"), "gguf-tq2_0")
    for program, format in (("transformers", "gguf-tq2_0"), ("transformers", "packed"), (sys.executable, "packed")):
        with pytest.raises(InputError, match=f"not what --format {format} writes"):
            check_program(program, format)
    check_program("transformers", "hf-plain")
    with pytest.raises(InputError, match="leave one out"):
        export(tmp_path, tmp_path / "out", "hf", verify=False, verify_with="transformers")
    monkeypatch.setattr(foreign_programs, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install llama-cpp-python"):
        foreign.FOREIGN["llama-cpp-python"](None, tmp_path / "x.gguf", 8, 64, 5.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NODE_PATH", "")
    with pytest.raises(InputError, match="node-llama-cpp: "):
        foreign.FOREIGN["node-llama-cpp"](None, tmp_path / "x.gguf", 8, 64, 5.0)


READY = 'print("loading", flush=True)\nprint("@wf ready 1.0", flush=True)\nimport sys\nfor line in sys.stdin:\n    '


def _program(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "reader"
    path.write_text(f"#!{sys.executable} -S\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys\nsys.exit('error: unknown type 99')", r"refused the model.*exit status 1.*unknown type 99"),
        ("import time\ntime.sleep(60)", "gave no answer within 0.5 s"),
        ("print('hello')", "ended without an answer.*hello|ended without an answer"),
        ("print('@wf error out of memory', flush=True)\nimport time\ntime.sleep(60)", "answered 'error out of memory'"),
        (READY + "sys.exit(3)", "ended without an answer.*exit status 3"),
        (READY + 'print("@wf tokens 1 x", flush=True)', "outside the vocabulary of 8"),
        (READY + 'print("@wf tokens 1 8", flush=True)', "outside the vocabulary of 8"),
        (READY + 'print("@wf tokens 1", flush=True)', "gave 1 tokens, 2 were asked for"),
        (READY + 'print("noise", flush=True)\n    import time\n    time.sleep(60)', "gave no answer within 0.5 s"),
    ],
)
def test_a_program_that_misbehaves(tmp_path: Path, body: str, message: str) -> None:
    program = _program(tmp_path, body)
    reader: Any = None
    with pytest.raises(VerificationError, match=message):
        reader = foreign_programs.open_line_program(
            program, tmp_path / "m.gguf", 8, 64, 0.5 if body.startswith("import time") else 20.0
        )
        reader._timeout = 0.5 if "sleep" in body else 20.0
        reader.greedy([1, 2], 2)
    if reader is not None:
        assert reader._process.child.poll() is not None, "the program was left running"
        reader.close()


WRONG = (
    READY
    + """word = line.split()
    if word[0] == "logits":
        open(word[1], "wb").write(bytes(4 * 258 * (len(word) - 3 - int(word[2]))))
        print("@wf logits", len(word) - 3 - int(word[2]), 258, flush=True)
    else:
        print("@wf tokens", *["7"] * int(word[1] if word[0] == "greedy" else 1), flush=True)"""
)


def test_no_file_is_left_when_a_program_disagrees(toy: Path, tmp_path: Path) -> None:
    program = _program(tmp_path, WRONG)
    with pytest.raises(VerificationError, match=r"reader 1.0 disagrees with the engine: its tokens of .*are not ours"):
        export(toy / "packed", tmp_path / "m.gguf", "gguf-tq2_0", threads=1, greedy_tokens=4, verify_with=str(program))
    assert [path.name for path in tmp_path.iterdir()] == ["reader"]


def test_logits_of_another_size_are_refused(tmp_path: Path) -> None:
    body = READY + 'open(line.split()[1], "wb").write(b"1234")\n    print("@wf logits 1 8", flush=True)'
    reader = foreign_programs.open_line_program(_program(tmp_path, body), tmp_path / "m.gguf", 8, 64, 5.0)
    with pytest.raises(VerificationError, match=r"gave logits \[1 8\] in 4 bytes"):
        reader.logits([1, 2], 1)
    reader.close()


SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{{}}')
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        {action}
    def log_message(self, *words):
        pass
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
REPLY = "self.send_response({status}); self.end_headers(); self.wfile.write({body!r})"


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        ("import os; print('assertion failed', file=sys.stderr, flush=True); os._exit(6)", VerificationError,
         "broke off over /completion.*assertion failed"),
        ("import time; time.sleep(60)", VerificationError, "did not answer /completion within"),
        (REPLY.format(status=200, body=b"<html>"), VerificationError, "not JSON"),
        (REPLY.format(status=500, body=b'{"error": "no"}'), VerificationError, "status 500"),
        (REPLY.format(status=200, body=b"{}"), VerificationError, "without probabilities"),
        (REPLY.format(status=200, body=b'{"completion_probabilities": [{"top_logprobs": [{"id": 9, "logprob": 0}]}]}'),
         VerificationError, "outside the vocabulary of 8"),
        (REPLY.format(status=200, body=b'{"completion_probabilities": [{"content": "x", "probs": []}]}'), InputError,
         "too old to name tokens"),
    ],
)  # fmt: skip
def test_a_server_that_misbehaves(tmp_path: Path, action: str, error: type[Exception], message: str) -> None:
    program = _program(tmp_path, SERVER.format(action=action))
    seconds = 0.5 if "sleep" in action else 20.0
    reader = ServerReader(program, tmp_path / "m.gguf", 8, 64, 20.0)
    reader._timeout = seconds
    with pytest.raises(error, match=message):
        reader.greedy([1, 2], 2)
    reader.close()
    assert reader._process.child.poll() is not None


def test_a_server_that_holds_back_half_a_character(tmp_path: Path) -> None:
    """llama-server gives no probabilities for a token that ends within a character; that is no failure."""
    body = '{"content": "\ufffd", "stop": true, "tokens": []}'.encode()
    reader = ServerReader(_program(tmp_path, SERVER.format(action=REPLY.format(status=200, body=body))),
                          tmp_path / "m.gguf", 8, 64, 20.0)  # fmt: skip
    try:
        assert reader.greedy([1, 2], 2) == []
        assert np.isnan(reader.logits([1, 2, 3], 1)).all()
    finally:
        reader.close()


def test_a_server_that_refuses_the_model_is_told_in_its_words(tmp_path: Path) -> None:
    program = _program(tmp_path, "import sys\nsys.exit('error loading model: wrong magic')")
    with pytest.raises(VerificationError, match=r"did not start.*exit status 1.*wrong magic"):
        ServerReader(program, tmp_path / "m.gguf", 8, 64, 20.0)
