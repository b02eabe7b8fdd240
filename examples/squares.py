"""The textbook example: eight lists of a thousand integers, squared. Here the loop is the fastest, and fourfold stays it.

python squares.py
"""

import fourfold as ff


def squares(numbers):
    return [number * number for number in numbers]


lists = [list(range(start, start + 1000)) for start in range(0, 8000, 1000)]
results = ff.map(squares, lists)
assert results == [squares(numbers) for numbers in lists]
print(results.report.verdict)
