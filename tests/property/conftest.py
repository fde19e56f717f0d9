"""Properties are about what holds, not how fast: a busy machine must not fail one. `.ci/nightly` looks much longer."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("quorate", deadline=None)
settings.register_profile("nightly", deadline=None, max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quorate"))
