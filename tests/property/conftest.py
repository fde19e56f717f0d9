"""Properties are about what holds, not how fast: a busy machine must not fail one."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("quorate", deadline=None)
settings.load_profile("quorate")
