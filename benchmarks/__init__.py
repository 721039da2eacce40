"""Speed beside published packages; each module prints its tables."""

import ctypes


def keep_memory() -> None:
    """Let the C library keep what is freed, where it is glibc.

    By default it maps large tensors anew in every step, and the system fills their
    pages with zeros at the first touch: up to half of a step on a virtual machine, and
    more for whoever allocates more. Called by every benchmark, for all contenders
    alike.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        for option, value in (
            (mmap_max, 0),
            (trim_threshold, 2**31 - 1),
            (top_pad, 2**28),
        ):
            mallopt(option, value)
