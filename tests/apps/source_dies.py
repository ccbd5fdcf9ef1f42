"""As `source`, but its camera is gone for good after 20 items."""

import source
from source import open_source, tasks  # noqa: F401

source._dies = True
