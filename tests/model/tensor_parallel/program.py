"""Runs every arrangement of heads over two ranks and over four, which are forked from it.

`python -m tests.model.tensor_parallel.program MEETING FOLDER...` prints, as JSON, the token ids
that the engine gives for each folder, split and number of ranks; 1 is its status if a rank fails.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from mediamill.model.engine import Engine, Request
from mediamill.model.layers.collectives import SINGLE_RANK, Collectives
from mediamill.model.layers.shards import Shard
from mediamill.model.sampling import Sampling
from mediamill.model.tensor_parallel.process_group import join, leave
from tests.model.prompts import prompt

SIZE = 4


def requests():
    """Two pictures (twice), a clip and plain text, of different lengths."""
    media = [[("image", (1, 4, 6)), ("image", (1, 8, 4))], [("video", (2, 4, 4))], []]
    made = [prompt(seed, kinds) for seed, kinds in enumerate(media)]
    sampling = Sampling(max_new_tokens=12, eos_token_ids=())
    drawn = Sampling(max_new_tokens=12, eos_token_ids=(), temperature=1.0, top_k=0, seed=5)
    texts = [[5, 6, 7], [9], [*range(30)]]
    asked = [Request(f"{i}", p.ids, p.visuals, sampling) for i, p in enumerate(made)]
    # About the same pictures: the ranks have to agree on what is computed once.
    asked.insert(1, Request("further", [*made[0].ids, 7, 8], made[0].visuals, sampling))
    return [
        *asked,
        Request("drawn", made[0].ids, made[0].visuals, drawn),
        Request("score", made[1].ids, made[1].visuals, mode="score", continuations=texts),
        *(
            Request(pool, made[0].ids, made[0].visuals, mode="embed", pool=pool, normalize=True)
            for pool in ("last", "mean", "visual_tokens", "vision_tower")
        ),
    ]


def answers(folder, shard=None, ranks=SINGLE_RANK):
    """Ids of each request, by its name; of one to score or embed, the numbers."""
    parts = {} if shard is None else {"shard": shard, "ranks": ranks}
    engine = Engine.load(folder, "cpu", "float32", cache_tokens=2000, **parts)
    return {
        one.id: one.embedding or [n for s in one.scores for n in s.logprobs] or one.output_ids
        for one in engine.generate(requests())
    }


def run_rank(rank, meeting, folders):
    torch.set_num_threads(1)
    world = join(Path(meeting), rank, SIZE, torch.device("cpu"), 240)
    pair = dist.new_group([0, 1])
    found = {}
    for folder in folders:
        for size, group in ((2, pair), (4, world.group)):
            if rank < size:
                ranks = Collectives(rank, size, group)
                key = f"{Path(folder).name} {size}"
                found[key] = answers(folder, Shard(rank, size), ranks)
    dist.barrier()
    if rank == 0:
        print(json.dumps(found), flush=True)
    leave()


def main(meeting, folders):
    """Forks once torch is imported, whose threads start in the ranks."""
    ranks = []
    for rank in range(SIZE):
        ranks.append(os.fork())
        if not ranks[-1]:
            run_rank(rank, meeting, folders)
            os._exit(0)
    failed = [pid for pid in ranks if os.waitpid(pid, 0)[1]]
    sys.exit(bool(failed))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
