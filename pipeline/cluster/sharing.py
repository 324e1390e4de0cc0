"""Devices per run: a whole number, or a fraction 1/N where N runs share a device."""

from dataclasses import dataclass
from fractions import Fraction

from pipeline.common.errors import UserError
from pipeline.common.words import plural

Devices = int | Fraction  # of one run; Fraction(1, N) where N runs share a device


@dataclass(frozen=True)
class FreeDevices:
    """The devices on which runs can start. A run that needs a whole device does not fit into two halves."""

    whole: int  # devices that no run uses
    rooms: tuple[Fraction, ...] = ()  # the free part of each device that some runs share

    @property
    def total(self) -> Devices:
        """The sum of all free devices and parts."""
        return self.whole + sum(self.rooms)

    def after_start(self, devices: Devices) -> "FreeDevices | None":
        """Return what is free after a run on `devices` has started; None where it does not fit.

        A run that shares joins the fullest device with room, as `SharedDevices.choose` does.
        """
        if isinstance(devices, int):
            return FreeDevices(self.whole - devices, self.rooms) if devices <= self.whole else None
        fitting = [room for room in self.rooms if devices <= room]
        if not fitting:
            return FreeDevices(self.whole - 1, (*self.rooms, 1 - devices)) if self.whole else None
        rooms = list(self.rooms)
        rooms.remove(min(fitting))
        rest = min(fitting) - devices
        return FreeDevices(self.whole, (*rooms, rest) if rest else tuple(rooms))

    def text(self, devices: Devices) -> str:
        """'1 free', '1/4 free': what is free for a run that needs `devices` and does not fit."""
        return f"{self.whole if isinstance(devices, int) else max(self.rooms, default=0)} free"


RAY_UNITS = 10_000  # Ray counts resources in ten-thousandths


def parse_devices(text: str) -> tuple[int, int]:
    """Return (devices per run, runs per device) of --gpus-per-run; UserError for any other number.

    '2' -> (2, 1); '0.25' and '1/4' -> (1, 4).
    """
    try:
        devices = Fraction(text)
    except (ValueError, ZeroDivisionError):
        devices = Fraction(0)
    if devices >= 1 and devices.denominator == 1:
        return int(devices), 1
    if devices.numerator == 1 and devices.denominator <= RAY_UNITS:
        return 1, devices.denominator
    raise UserError(
        f"--gpus-per-run {text}: must be an integer >= 1, or 1/N for N runs on each device, as in 0.5, 0.25 or 1/3"
    )


def devices_text(devices: Devices, noun: str = "device") -> str:
    """'2 devices'; '1/4 of a device'."""
    return plural(devices, noun) if isinstance(devices, int) else f"{devices} of a {noun}"


def layout_text(devices: Devices, *, gpu: bool) -> str:
    """'2 GPUs'; '2 processes'; '1/4 of a CPU'."""
    if gpu or isinstance(devices, Fraction):
        return devices_text(devices, "GPU" if gpu else "CPU")
    return f"{devices} processes" if devices > 1 else "1 process"


def as_number(devices: Devices) -> int | float:
    """Return a sum of devices as a number for JSON."""
    return int(devices) if devices == int(devices) else round(float(devices), 4)


def ray_amount(devices: Devices) -> int | float:
    """Return the amount of a resource for Ray, rounded down, so that N times 1/N is at most a whole device."""
    return (
        devices if isinstance(devices, int) else (devices.numerator * RAY_UNITS // devices.denominator) / RAY_UNITS
    )
