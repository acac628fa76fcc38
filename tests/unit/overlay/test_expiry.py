"""Messages to the kernel never fail whoever sends them."""

from __future__ import annotations

import os
import struct

from session_agent.overlay.expiry import Expiry


def test_the_message() -> None:
    """fuse_out_header and fuse_notify_inval_inode_out, of attributes alone."""
    reading, writing = os.pipe()
    expiry = Expiry()
    expiry.connection = writing
    expiry.attributes(7)
    message = os.read(reading, 100)
    assert struct.unpack("=IiQ", message[:16]) == (len(message), 2, 0)
    assert struct.unpack("=Qqq", message[16:]) == (7, -1, 0)
    os.close(reading)
    os.close(writing)


def test_a_kernel_that_does_not_take_it() -> None:
    """It answers so when it has just forgotten the node: the move that wanted it must go on."""
    expiry = Expiry()
    expiry.attributes(7)
    expiry.connection = os.open("/dev/full", os.O_WRONLY)
    expiry.attributes(7)
    os.close(expiry.connection)
