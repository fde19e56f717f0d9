"""Set-up: everything that Quorate needs on a machine with Python and nothing else, made once and kept in the user's
cache.

`toolbox({Tool.COMETBFT, Tool.EVM})` makes what is missing and returns where everything is. Every module here needs
the standard library only, because the bootstrap runs them before any package is installed.
"""

from quorate.localnet.tools.make import Tools, is_offline, missing, toolbox
from quorate.localnet.tools.parts import PROGRAMS, Site, Tool
from quorate.localnet.tools.progress import Screen

__all__ = ["PROGRAMS", "Screen", "Site", "Tool", "Tools", "is_offline", "missing", "toolbox"]
