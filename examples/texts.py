"""Functions for `fourfold map`: one row in, one row out.

fourfold map texts:statistics texts.jsonl -o statistics.csv
fourfold map texts:Spam texts.jsonl -o spam.jsonl --init weights.json
"""

import json
import math
import re

WORD = re.compile(r"\w+")


def statistics(row):
    words = WORD.findall(row["text"])
    return {
        "id": row["id"],
        "n_words": len(words),
        "mean_length": round(sum(map(len, words)) / len(words), 2),
    }


class Spam:
    """A model that takes time to load: built once per worker, then called per row."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            self.weights = json.load(file)

    def __call__(self, row):
        words = WORD.findall(row["text"].lower())
        score = self.weights["(bias)"] + sum(self.weights.get(word, 0.0) for word in words)
        return {"id": row["id"], "spam": round(1 / (1 + math.exp(-score)), 3)}
