"""Names as Matplotlib shows them."""


def plain(text: str, most: int = 40) -> str:
    """A name, cut in its middle to `most` letters and escaped: Matplotlib reads dollars as
    formulas, and drops labels that begin with _ from legends. Two names may become one: no key."""
    text = " ".join(str(text).split())
    if len(text) > most:
        text = text[: most // 2] + "\u2026" + text[len(text) - (most - 1) // 2 :]
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
