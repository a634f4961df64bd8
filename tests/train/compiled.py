"""A training with compiled streams, for test_compiled.py: by itself, since the tests' checks of shapes around every
function are not for the compiler."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from align.rehearsing import make_cache, make_sources, seeded_state, tiny_model
from selfalign.train.compiled import compile_streams
from selfalign.train.step import train_step

graphs = []


def as_it_is(graph, examples):
    """A compiler that runs the graphs which were found: the code that others generate of them is torch's own matter."""
    graphs.append(graph)
    return graph


def main(folder: Path) -> None:
    torch.compile = partial(torch.compile, backend=as_it_is)
    sources = make_sources(make_cache(folder))
    states = (seeded_state(sources), seeded_state(sources, model=compile_streams(tiny_model())))
    rows = []
    for state in states:
        torch.manual_seed(3)
        rows.append([train_step(state) for _ in range(2)])
    print(json.dumps({"rows": rows, "graphs": len(graphs)}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
