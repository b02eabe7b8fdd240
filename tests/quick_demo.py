"""The demo as a program that takes seconds: all of it is real, with a smaller forest and fewer pieces."""

import sys

COMMAND = [
    sys.executable,
    "-c",
    "import fourfold.data.pieces as pieces, fourfold.cli.demo_steps as steps; pieces.PIECES = steps.N_TREES = 8; "
    "from fourfold.cli import main; main()",
    "demo",
    "--months",
    "2",
]
