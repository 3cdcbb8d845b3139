"""What the clients' environment cannot do: run by the Python that has wrinklefree.

own_side.py write DIRECTORY     a packed toy of bytes with random weights, whose chat template knows tools
own_side.py tokens DIRECTORY    for each line, a text: its token ids
own_side.py score DIRECTORY     for each line of token ids (JSON): log-probabilities of all but the first, and
                                whether each was the most likely one
own_side.py continue DIRECTORY  for each line {"tokens", "max_tokens"}: the greedy text of the engine
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / room) for room in ("artifact", "engine")]

TEMPLATE = """\
{%- if tools %}<|im_start|>system
You may call functions. They are:
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}To call one, write <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write(directory: Path) -> None:
    import tokenizer_toys
    from toy_models import BASE, write_toy

    config = {**BASE, "vocab_size": 258, "eos_token_id": 257, "max_position_embeddings": 2048}
    write_toy(directory, config, "row", 64, seed=3)
    tokenizer_toys.write(directory, template=TEMPLATE)


def tokens(directory: Path) -> None:
    from wrinklefree.artifact.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(directory)
    for line in sys.stdin:
        print(json.dumps(tokenizer.encode(json.loads(line))))


def score(directory: Path) -> None:
    from wrinklefree.engine import Engine

    engine = Engine.load(directory, threads=1)
    for line in sys.stdin:
        tokens = np.array(json.loads(line), np.int32)
        logits = engine.logits(tokens)[:-1].astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        chosen = logprobs[np.arange(len(tokens) - 1), tokens[1:]]
        best = logits.argmax(-1) == tokens[1:]
        print(json.dumps({"logprobs": chosen.tolist(), "greedy": best.tolist()}))


def go_on(directory: Path) -> None:
    from wrinklefree.engine import Engine, greedy

    engine = Engine.load(directory, threads=1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(engine.generate(asked["tokens"], greedy(asked["max_tokens"])).run().text))


if __name__ == "__main__":
    {"write": write, "tokens": tokens, "score": score, "continue": go_on}[sys.argv[1]](Path(sys.argv[2]))
