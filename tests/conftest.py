"""What holds for all tests: hypothesis counts no milliseconds; the machine has other work too."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("house", deadline=None)
settings.load_profile("house")
