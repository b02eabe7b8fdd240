"""Says who it is: `fourfold launch ranks.py hello --world-size 2`."""

import os
import sys

print(f"{sys.argv[1]}, I am {os.environ['RANK']} of {os.environ['WORLD_SIZE']}")
