"""Settings of all tests."""

from __future__ import annotations

import hypothesis

# A machine that is busy otherwise is slow: what takes long is no failure.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")
