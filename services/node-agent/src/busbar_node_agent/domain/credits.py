"""How much work a replica may still ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Credits:
    """Slots of one replica: each is free, asked for (`outstanding`) or taken (`in_hand`).

    Asking never makes `outstanding + in_hand` exceed `slots`, so whatever the
    bus delivers there is a slot for it. Lowering `slots` below what is asked for
    takes effect as that work ends.
    """

    slots: int
    outstanding: int = 0
    in_hand: int = 0

    def wanted(self) -> int:
        """How many to ask for now; 0 while at least half of the slots are asked for.

        Asking for few at a time costs a message each, asking late leaves slots idle.
        """
        free = self.slots - self.outstanding - self.in_hand
        if free <= 0 or self.outstanding * 2 >= self.slots:
            return 0
        return free

    def asked(self, count: int) -> None:
        """A pull request for `count` was sent."""
        self.outstanding += count

    def arrived(self) -> None:
        """One asked-for request was delivered and takes a slot."""
        self.outstanding = max(0, self.outstanding - 1)
        self.in_hand += 1

    def ended(self) -> None:
        """One request left its slot."""
        self.in_hand = max(0, self.in_hand - 1)

    def returned(self, count: int) -> None:
        """The server ended a pull request with `count` undelivered."""
        self.outstanding = max(0, self.outstanding - count)

    def forget(self) -> None:
        """All pull requests are void: the subscription or the connection was lost."""
        self.outstanding = 0
