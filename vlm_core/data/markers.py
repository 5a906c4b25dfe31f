"""Stand-ins for texts in a rendered chat template: private-use characters, which no template trims."""

import re

MARKER = "\ue000{}\ue001"
MARKER_PATTERN = re.compile("\ue000(\\d+)\ue001")
