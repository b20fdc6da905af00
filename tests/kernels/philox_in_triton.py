"""Draws candidates with `tl.philox` in Triton's interpreter; run by test_candidates.py.

Reads JSON cases [seed, first group, groups, candidates, items] from stdin and answers with the
ids of each. TRITON_INTERPRET=1 must be set before triton is imported.
"""

import json
import sys

import torch
import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def draw(ids_ptr, seed, first_group, num_candidates, num_items, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(0)
    slot = tl.arange(0, BLOCK)
    counter = slot.to(tl.uint32)
    zero = counter * 0
    high, low, _, _ = tl.philox(seed, counter, zero + (first_group + group).to(tl.uint32), zero, 0)
    items = num_items.to(tl.uint64)
    carry = (low.to(tl.uint64) * items) >> 32
    ids = (high.to(tl.uint64) * items + carry) >> 32
    tl.store(ids_ptr + group * num_candidates + slot, ids.to(tl.int64), mask=slot < num_candidates)


def main() -> None:
    answers = []
    for seed, first_group, num_groups, num_candidates, num_items in json.load(sys.stdin):
        ids = torch.empty(num_groups, num_candidates, dtype=torch.int64)
        block = triton.next_power_of_2(num_candidates)
        draw[(num_groups,)](ids, seed, first_group, num_candidates, num_items, BLOCK=block)
        answers.append(ids.tolist())
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
