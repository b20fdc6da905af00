"""What may be shown of an address."""

import re
import urllib.parse


def hide_password(text: str) -> str:
    """A URL, or a text with one in it, without what lets its reader in.

    The user goes with the password: an MLflow server may take a token for one. A password may
    hold any character, so that all up to the last @ is hidden.
    """
    text = re.sub(r"(?<=://)(?!/).*@", "", text, flags=re.DOTALL)
    return re.sub(r"(?<=[?&])([^=&]*)=([^&\s']*)", _without_secret, text)


def _without_secret(setting: re.Match[str]) -> str:
    name = urllib.parse.unquote(setting[1])
    return f"{setting[1]}=" if re.search("passw|secret|token", name, re.IGNORECASE) else setting[0]
