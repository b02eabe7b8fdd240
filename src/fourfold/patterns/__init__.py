"""Shapes of parallel work that are no map over items.

gang/   processes that talk to each other: all start, or none; one fails, and all end
"""

import fourfold.patterns.gang as gang

__all__ = ["gang"]
