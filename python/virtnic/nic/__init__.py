"""One NIC, from what is asked of QEMU and of the device until it is unplugged.

``port`` is what users hold, a Qemu and its ports. What is behind these is ``host`` and
``attachment``; the others are the parts of which they are made, and each uses those below it only.
"""
