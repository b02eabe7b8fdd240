"""Write the tables of docs/contracts.md: the rows of the contract, what each engine makes of them, and their tests.

python scripts/write_contracts.py [--check]
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from contracts import marked, tables  # noqa: E402

PAGE = ROOT / "docs" / "contracts.md"
BEGIN, END = "<!-- rows -->\n", "<!-- end of rows -->\n"


def main() -> int:
    """Write the tables, or say whether they are as they should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}{tables(marked())}{END}{after}"
    if "--check" in sys.argv:
        return int(new != text)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
