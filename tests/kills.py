"""How often the kill tests kill: three times, or what MEDPIX_KILLS says (`make stress`)."""

import os

KILLS = int(os.environ.get("MEDPIX_KILLS", "3"))
