"""TCP's own care for connections: the kernel notices who is gone, and leaves alone who only reads slowly.

WebSockets have pings for that. But a ping waits behind all that was sent before it, so a slow reader answers late and
would be taken for lost. Options that a system does not have are left out.
"""

import socket

GONE_S = 120  # seconds in which the other side takes nothing at all
UNSENT_BYTES = 16_384  # that the kernel holds for a connection, beside what is on its way

_NOTICES_LOSS = {
    "TCP_KEEPIDLE": 20,  # seconds of silence before the first probe
    "TCP_KEEPALIVE": 20,  # the same on macOS
    "TCP_KEEPINTVL": 10,  # seconds between probes
    "TCP_KEEPCNT": 6,
    "TCP_USER_TIMEOUT": 1000 * GONE_S,
}


def notice_loss(line: socket.socket) -> None:
    """Let a connection end once its other side is gone without a word. What a listening socket has, its calls have."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _NOTICES_LOSS.items():
        _set(line, name, value)


def hold_little(line: socket.socket) -> None:
    """Let writers wait for a slow reader soon: the kernel would take megabytes, which are minutes of a stream."""
    _set(line, "TCP_NOTSENT_LOWAT", UNSENT_BYTES)


def _set(line: socket.socket, name: str, value: int) -> None:
    option = getattr(socket, name, None)
    if option is not None:
        line.setsockopt(socket.IPPROTO_TCP, option, value)
