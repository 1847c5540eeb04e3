"""A small virtual machine for what needs kernel modules: vhost-net, vDPA.

``__main__`` is the command, ``kernel`` gets a kernel, ``initramfs`` packs what it needs to mount
this machine's own root, ``machine`` boots it and runs a command.
"""
