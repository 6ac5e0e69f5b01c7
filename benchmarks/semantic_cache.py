"""What a cache by likeness would serve of the published pairs.

    python benchmarks/semantic_cache.py [--embedder MODULE:FUNCTION] [--pairs]

The pairs are tests/completions/near_misses.yaml: prompts that look alike and need different answers, and prompts that
ask the same. A false hit is a near miss that is taken for the same; a true hit a paraphrase that is. Each pair is
judged for itself, as in shadow mode: the first prompt was answered, the second one is asked.

Without `--embedder` it uses hashed groups of three to five characters, which need no package and know no meaning. Any
`module:function` from texts to vectors can be measured, with the module's folder on PYTHONPATH. It also times a look
through 2,000 answered prompts of 384 dimensions.
"""

from __future__ import annotations

import argparse
import importlib
import random
import statistics
import sys
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from ksi_mcp.completions.embedding import unit_vector  # noqa: E402
from ksi_mcp.completions.paraphrase_guard import difference  # noqa: E402
from ksi_mcp.completions.semantic import nearest  # noqa: E402
from ksi_mcp.yamlio import safe_load  # noqa: E402

PAIRS = HERE.parent / "tests" / "completions" / "near_misses.yaml"
THRESHOLDS = (0.90, 0.95, 0.97, 0.98, 0.99)
DIMENSIONS = 1_024
ENTRIES, WIDTH = 2_000, 384


def ngrams(texts: list[str]) -> list[list[float]]:
    """Counts of groups of 3 to 5 characters, hashed: the same everywhere."""
    made = []
    for text in texts:
        padded, vector = f"  {' '.join(text.casefold().split())}  ", [0.0] * DIMENSIONS
        for size in (3, 4, 5):
            for start in range(len(padded) - size + 1):
                hashed = zlib.crc32(padded[start : start + size].encode())
                vector[hashed % DIMENSIONS] += 1.0 if hashed & 0x8000_0000 else -1.0
        made.append(vector)
    return made


def embedder(name: str | None) -> Any:
    if name is None:
        return ngrams
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def scores(embed: Any, pairs: list[list[str]]) -> list[float]:
    vectors = [unit_vector([float(x) for x in v]) for v in embed([text for _, *two in pairs for text in two])]
    return [sum(a * b for a, b in zip(*vectors[n : n + 2], strict=True)) for n in range(0, len(vectors), 2)]


def look_ms() -> float:
    """The median time of one comparison with all entries, ms."""
    chance = random.Random(1)
    points = {n: unit_vector([chance.gauss(0, 1) for _ in range(WIDTH)]) for n in range(ENTRIES)}
    took = []
    for n in range(9):
        began = time.perf_counter()
        nearest(points[n], points, at_least=0.85)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--embedder", help="module:function; without it: character groups")
    parser.add_argument("--pairs", action="store_true", help="show every pair")
    asked = parser.parse_args()
    embed = embedder(asked.embedder)
    document = safe_load(PAIRS.read_text("utf-8"), what=PAIRS.name)
    print(f"embedder {asked.embedder or 'character groups'}")
    total: Counter[tuple[str, str, float, str]] = Counter()
    for half, kinds in document.items():
        for kind, pairs in kinds.items():
            found = scores(embed, pairs)
            print(f"{half} {kind}: {len(pairs)} pairs, mean likeness {statistics.mean(found):.3f}")
            for (category, one, other), score in zip(pairs, found, strict=True):
                reason = difference(one, other)
                for limit in THRESHOLDS:
                    if score >= limit:
                        total[half, kind, limit, "alone"] += 1
                        total[half, kind, limit, "listed"] += reason is None or reason.kind == "words"
                        total[half, kind, limit, "guarded"] += reason is None
                total[half, kind, 0, "alone"] += 1
                total[half, kind, 0, "listed"] += reason is None or reason.kind == "words"
                total[half, kind, 0, "guarded"] += reason is None
                if asked.pairs:
                    said = "-" if reason is None else reason.text()
                    print(f"    {score:.3f} [{category}] {one} | {other} | {said}")
    print(
        "\nhits of the near misses are false, of the paraphrases true; `lists only`: a guard of lists without the rule"
    )
    print("that a word which only one prompt has makes it another question")
    heads = ("alone", "lists only", "guard")
    print("\n" + f"{'half':5}{'threshold':>10}    {'false hits':31}    {'true hits'}")
    print(f"{'':15}    " + "    ".join(f"{heads[0]:>9}{heads[1]:>12}{heads[2]:>10}" for _ in range(2)))
    for half, kinds in document.items():
        near, same = len(kinds["near_misses"]), len(kinds["paraphrases"])
        for limit in (0.0, *THRESHOLDS):
            cells = [
                f"{total[half, kind, limit, how]}/{count}"
                for kind, count in (("near_misses", near), ("paraphrases", same))
                for how in ("alone", "listed", "guarded")
            ]
            shown = f"{limit:.2f}" if limit else "guard only"
            sides = (f"{alone:>9}{listed:>12}{guard:>10}" for alone, listed, guard in (cells[:3], cells[3:]))
            print(f"{half:5}{shown:>10}    " + "    ".join(sides))
    print(f"\na look through {ENTRIES:,} entries of {WIDTH} dimensions: {look_ms():.1f} ms")


if __name__ == "__main__":
    main()
