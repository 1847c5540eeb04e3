"""One NIC, from what is asked of QEMU and of the device until it is unplugged.

``qemu`` has a QEMU whose devices are ours, ``port`` what users hold; the others are the parts of
which they are made, and each uses those below it only.
"""
