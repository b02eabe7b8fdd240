"""The demo as a program that takes seconds: all of it is real, of fewer flights and in fewer pieces."""

import sys

COMMAND = [
    sys.executable,
    "-c",
    "import fourfold.data.pieces as pieces; pieces.PIECES = 8; from fourfold.cli import main; main()",
    "demo",
    "--months",
    "2",
]
