"""For all tests. Properties are about what holds, not how fast: a busy machine must not fail one."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("quorate", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quorate"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts its background jobs so, and every child would inherit it: no test of Ctrl-C could pass.
    signal.signal(signal.SIGINT, signal.default_int_handler)
