"""What is free of one machine while processes are placed on it."""

from __future__ import annotations

from dataclasses import dataclass

# Sums of fractions are not exact: 0.7 + 0.2 + 0.1 is a little less than 1.
ROUNDING = 1e-6


@dataclass
class Room:
    """CPUs and GPUs of a machine, and what of them is taken."""

    free: list[float]
    """The share of each GPU that nobody has."""
    room_cpus: float
    cpus: float = 0.0
    """CPUs that are taken."""

    def take_share(self, cpus: float, gpus: float) -> bool:
        """Place a process here, if it fits: whole GPUs, or a share of one."""
        if self.cpus + cpus > self.room_cpus + ROUNDING:
            return False
        if gpus >= 1:
            whole = [number for number, share in enumerate(self.free) if share == 1]
            if len(whole) < gpus:
                return False
            for number in whole[: int(gpus)]:
                self.free[number] = 0.0
        elif gpus:
            fits = [share for share in self.free if share >= gpus - ROUNDING]
            if not fits:
                return False
            # The fullest that has room, so that others stay whole.
            number = self.free.index(min(fits))
            self.free[number] -= gpus
        self.cpus += cpus
        return True
