"""How Sphinx builds the documentation (`make docs`)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from relayd import __version__

project = "relayd"
author = "the relayd authors"
release = __version__
html_theme = "alabaster"
html_theme_options = {"page_width": "1000px"}
html_static_path = ["_static"]
html_css_files = ["relayd.css"]
exclude_patterns = ["_build"]
