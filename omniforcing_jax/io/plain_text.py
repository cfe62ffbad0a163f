"""Text from files as it may reach a terminal: names of tensors and free text can have escape sequences in them."""


def printable(text: str) -> str:
    r"""Spell out what a terminal would obey or reorder: control and format characters, as in `\x1b`."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def one_line(text: str) -> str:
    """Return a message as one printable line."""
    return printable(" ".join(text.split()))
