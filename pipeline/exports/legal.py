"""Text that XML can hold: names in model files are anyone's."""

from __future__ import annotations

import re
from typing import Final

# Characters that XML 1.0 can't hold in any form.
_ILLEGAL: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def legal(text: str) -> str:
    """The text, with a mark for each character that XML can't hold."""
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
