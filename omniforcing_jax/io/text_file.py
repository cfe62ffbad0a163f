"""Text files that people write: one line each, whatever editor and system they come from."""

from omniforcing_jax.io.atomic_write import AnyPath

LARGEST = 1 << 30  # bytes


def read_lines(path: AnyPath) -> list[str]:
    r"""Read the lines of a text file that are not empty, without the white space around them.

    A byte-order mark at the beginning is left out. Lines end with "\n", "\r\n" or "\r" and with nothing else: other
    separators, such as U+2028, are part of a line.

    Raises:
        ValueError: The file cannot be read or is not UTF-8 text; names it.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(LARGEST).decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text") from None
    if "\0" in text:
        raise ValueError(f"{path}: not UTF-8 text: has a zero character; UTF-16 must be converted")
    lines = (line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    return [line for line in lines if line]
