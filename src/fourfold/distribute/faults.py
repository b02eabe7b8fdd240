"""What can go wrong between a driver and its workers, as probabilities: for the simulation."""

from dataclasses import dataclass

BOOTS = 3
"""Times that a simulated worker tries to start before it is given up. More: an engine rarely goes down in the simulation."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How often each fault happens; each is a probability. Those of the first group are per ticket.

    Attributes:
        death: The worker dies during the ticket, at a random item.
        dies_before: The worker is found dead before the ticket's first item.
        dies_after: The worker dies after the last item: the result is lost, and its death is told late.
        tie: The ticket ends in the same tick in which the time of its last item is over, and both are told.
        cut: The ticket comes back with only its first items done.
        late: What became of the ticket is told late, and so after what happened later.
        twice: What became of the ticket is told again, at once or late.
        skewed: A clock jumps while the ticket runs: it took no time, or days.
        unmarked: Per death: nobody knows on which item it was.
        sent: Per death: it was a signal that somebody must send.
        boot: Per start of a worker: it fails.
        keeps: Per death: what the ticket had finished is told with it, up to some item, in one part or two.
        spoils: The ticket ends well, and leaves a worker that dies on the first item of its next one.
    """

    death: float = 0.0
    dies_before: float = 0.0
    dies_after: float = 0.0
    tie: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    twice: float = 0.0
    skewed: float = 0.0
    unmarked: float = 0.0
    boot: float = 0.0
    spoils: float = 0.0
    keeps: float = 0.0
    sent: float = 0.0
