"""The demo as a program that takes seconds: all of it is real, of fewer flights and in fewer pieces."""

import sys

PIECES, MONTHS = 8, 2

COMMAND = [
    sys.executable,
    "-c",
    f"import fourfold.data.pieces as pieces; pieces.PIECES = {PIECES}; from fourfold.cli import main; main()",
    "demo",
    "--months",
    str(MONTHS),
]
