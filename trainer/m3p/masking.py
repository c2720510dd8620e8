"""Passwords, tokens and signatures in the URLs of a text, which are shown and stored nowhere."""

import re

HIDDEN = "***"

# A password may hold an @, and ends before the host's. A variable in its place, ${NAME}, is no secret. A URL that was taken
# for a path has lost a slash.
_PASSWORD = re.compile(r"(:/{1,2}[^/\s:@]*:)(?!\$\{\w+\}@)[^/\s]+@")
_TOKEN = re.compile(r"(https?:/{1,2})(?!\$\{\w+\}@)[^/\s:@]+@", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"([?&][^=&\s]*(?:sig|token|key|secret|credential|auth|pass|pwd)[^=&\s]*=)(?!\$\{\w+\}(?:[&\s]|$))[^&\s]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Return a text, such as an error's, with the passwords, tokens and signatures of the URLs in it replaced by `***`."""
    return _SIGNATURE.sub(rf"\1{HIDDEN}", _TOKEN.sub(rf"\1{HIDDEN}@", _PASSWORD.sub(rf"\1{HIDDEN}@", text)))
