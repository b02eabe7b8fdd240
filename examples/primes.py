"""Work that pays: counting primes. No `if __name__ == "__main__":` is needed, and the function may be a lambda.

python primes.py
"""

import fourfold as ff

STEP = 2_000

ranges = [range(start, start + STEP) for start in range(0, 200_000, STEP)]
counts = ff.map(lambda numbers: sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in numbers if n > 1), ranges)
print(sum(counts), "primes below 200,000")
print(counts.report.verdict)
