"""How often the kill tests kill: three times, or MEDPIX_KILLS times (`make stress`)."""

import os

KILLS = int(os.environ.get("MEDPIX_KILLS", "3"))
